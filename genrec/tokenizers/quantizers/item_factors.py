"""Collaborative factors of items: one vector an item that says who chooses it.

Owns reading given factors and making them from training interactions. Knows no loss.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

from genrec.errors import DataError, join_problems
from genrec.tokenizers.inputs import FitInput
from genrec.types import FloatArray

_SHOWN = 5
_NEEDS = "one row of finite numbers an item, all equally long"
_log = logging.getLogger(__name__)


def read_factors(path: Path, given: FitInput) -> FloatArray:
    """The factors (N, F) in a file, row i for the i-th item.

    Args:
        path: Parquet with the columns item_id and factors (a list), in any order and with any
            further items; or .npy, a matrix in the items' order.
        given: the items.

    Raises:
        DataError: the file cannot be read, or factors are missing, not finite or of several widths;
            all of it in one message.
    """
    try:
        if path.suffix == ".npy":
            return _check_matrix(np.load(path, allow_pickle=False), path, given)
        table = pl.read_parquet(path)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"letter.factors: {path} cannot be read: {error}") from error
    missing = {"item_id", "factors"} - set(table.columns)
    if missing:
        raise DataError(
            f"letter.factors: {path} has no column {' and '.join(sorted(missing))}, only "
            f"{', '.join(table.columns)}; it needs item_id and factors (a list of numbers)"
        )
    if not isinstance(table["factors"].dtype, pl.List | pl.Array):
        raise DataError(
            f"letter.factors: the column factors of {path} is {table['factors'].dtype}, but must "
            f"be a list of numbers"
        )
    return _order_factors(table, path, given)


def _check_matrix(matrix: np.ndarray, path: Path, given: FitInput) -> FloatArray:
    if matrix.ndim != 2 or len(matrix) != given.n_items or not matrix.size:  # noqa: PLR2004
        raise DataError(
            f"letter.factors: {path} has shape {matrix.shape}, but must hold {_NEEDS}, in the "
            f"order of the {given.n_items:,} items; a Parquet file may name them instead"
        )
    factors = matrix.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(factors).all(axis=1))
    if bad.size:
        raise DataError(_describe(path, [f"NaN or infinity: {_name_items(given, bad.tolist())}"]))
    return factors


def _order_factors(table: pl.DataFrame, path: Path, given: FitInput) -> FloatArray:
    """The table's factors in the order of the items."""
    ids = table["item_id"].cast(pl.String)
    by_item = dict(zip(ids, table["factors"].cast(pl.List(pl.Float32)), strict=True))
    found = [by_item.get(item_id) for item_id in given.item_ids]
    widths = {len(row) for row in found if row is not None}
    missing = [row for row, values in enumerate(found) if values is None]
    bad = [
        row
        for row, values in enumerate(found)
        if values is not None
        and (values.null_count() or not np.isfinite(values.to_numpy()).all() or not len(values))
    ]
    problems = []
    if len(by_item) < table.height:
        problems.append(f"{table.height - len(by_item):,} item ids come more than once")
    if missing:
        problems.append(f"no factors: {_name_items(given, missing)}")
    if bad:
        problems.append(f"empty, NaN or infinity: {_name_items(given, bad)}")
    if len(widths) > 1:
        problems.append(f"several widths: {', '.join(map(str, sorted(widths)))}")
    if problems:
        raise DataError(_describe(path, problems))
    return np.array([values.to_numpy() for values in found if values is not None], dtype=np.float32)


def _name_items(given: FitInput, rows: list[int]) -> str:
    shown = ", ".join(repr(given.item_ids[row]) for row in rows[:_SHOWN])
    return f"{len(rows):,} items ({shown}{', ...' if len(rows) > _SHOWN else ''})"


def _describe(path: Path, problems: list[str]) -> str:
    return join_problems(f"letter.factors: {path} must hold {_NEEDS}", problems)


def factorise_interactions(given: FitInput, dimensions: int, seed: int) -> FloatArray:
    """Factors (N, F) of length 1 by truncated SVD of who chose what in the training split.

    Interactions of the validation and test parts are not looked at. An item without a training
    interaction gets NaN. F is `dimensions`, or less where there are fewer users or items.

    Args:
        given: the items, with their data.
        dimensions: singular vectors to keep.
        seed: of the randomised SVD.

    Source: the matrix is divided by the square roots of the counts of its users and items, as
    spectral methods and LightGCN (He et al. 2020) do: without that, the first factors are
    popularity. LETTER (Wang et al. 2024) takes the item embeddings of a trained SASRec.

    Raises:
        DataError: no item has a training interaction.
    """
    sequences = given.catalogue.sequences(("train",))
    users = np.repeat(np.arange(len(sequences.user_index)), np.diff(sequences.offsets))
    shape = (len(sequences.user_index), given.catalogue.n_items)
    chosen = csr_matrix((np.ones(len(users)), (users, sequences.item_index)), shape=shape)
    chosen.data[:] = 1.0  # a second choice of the same item does not count
    by_user, by_item = (np.asarray(chosen.sum(axis=axis)).ravel() for axis in (1, 0))
    if not by_item.any():
        raise DataError(
            f"{given.catalogue.artifact.path} has no training interaction, so there are no "
            f"collaborative factors to align with; give letter.factors, or use the recipe rqvae"
        )
    rows = np.repeat(np.arange(shape[0]), np.diff(chosen.indptr))
    chosen.data /= np.sqrt(by_user[rows] * by_item[chosen.indices])
    width = min(dimensions, *shape)
    _, strengths, directions = randomized_svd(chosen, width, random_state=seed)
    factors: FloatArray = (directions * strengths[:, None]).T.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        factors /= np.linalg.norm(factors, axis=1, keepdims=True)
    factors[by_item == 0] = np.nan
    if given.data_rows is not None:
        factors = factors[given.data_rows]
    _log.info(
        "letter: %s factors of %s training interactions; %s of %s items have none and are left out",
        f"{width:,}",
        f"{len(users):,}",
        f"{int(np.isnan(factors[:, 0]).sum()):,}",
        f"{given.n_items:,}",
    )
    return factors

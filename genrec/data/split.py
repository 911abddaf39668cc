"""The order of time, and which part of it is for training, validation and test.

Owns the tie rule and the splits, as pure functions of rows. Knows no file.

The tie rule: rows go by `position` where the source has one, otherwise by timestamp, and rows of
one moment keep the order of the file. A temporal split goes by timestamp first, then position, then
file order.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec.data.recipe import DataRecipe
from genrec.errors import DataError

TRAIN, VALID, TEST = "train", "valid", "test"
_LEAST_FOR_VALID = 3


def time_order(columns: list[str], split: str) -> list[str]:
    """The columns that rows are ordered by, the most important first."""
    keys = ["timestamp", "position"] if split == "temporal" else ["position", "timestamp"]
    present = [name for name in keys if name in columns]
    if split != "temporal" and present:
        present = present[:1]
    return [*present, "line"]


def order_rows(rows: pl.DataFrame, split: str) -> pl.DataFrame:
    """The rows by user and time, with `position` 0, 1, ... within each user."""
    ordered = rows.sort(["user", *time_order(rows.columns, split)])
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user")
    return ordered.with_columns(place.alias("position"))


def mark_split(rows: pl.DataFrame, recipe: DataRecipe) -> pl.DataFrame:
    """Ordered rows with the column `split`: train, valid or test.

    Raises:
        DataError: a temporal split of rows without timestamps, or one that leaves a part empty.
    """
    if recipe.split == "temporal":
        return _mark_temporal(rows, recipe)
    return _mark_last_out(rows)


def _mark_last_out(rows: pl.DataFrame) -> pl.DataFrame:
    """Each user's last row is test and the one before valid.

    A user with two rows has no valid one, and with one row none but train: a test without a history
    could not be answered.
    """
    length = pl.len().over("user")
    from_end = length - 1 - pl.col("position")
    split = (
        pl.when((from_end == 0) & (length > 1))
        .then(pl.lit(TEST))
        .when((from_end == 1) & (length >= _LEAST_FOR_VALID))
        .then(pl.lit(VALID))
        .otherwise(pl.lit(TRAIN))
    )
    return rows.with_columns(split=split)


def _mark_temporal(rows: pl.DataFrame, recipe: DataRecipe) -> pl.DataFrame:
    if "timestamp" not in rows.columns:
        raise DataError(
            "split: temporal needs timestamps, and the source has none; "
            "map the column in `columns`, or use split: leave-last-out"
        )
    valid_from, test_from = recipe.moments or _find_moments(
        rows, recipe.valid_fraction, recipe.test_fraction
    )
    time = pl.col("timestamp")
    split = (
        pl.when(time >= test_from)
        .then(pl.lit(TEST))
        .when(time >= valid_from)
        .then(pl.lit(VALID))
        .otherwise(pl.lit(TRAIN))
    )
    marked = rows.with_columns(split=split)
    empty = [part for part in (TRAIN, VALID, TEST) if part not in marked["split"]]
    if empty:
        times = rows["timestamp"].to_numpy()
        raise DataError(
            f"the temporal split leaves {' and '.join(empty)} empty: valid begins at "
            f"{valid_from:.0f} and test at {test_from:.0f}, the data covers {times.min():.0f} to "
            f"{times.max():.0f}; change the fractions, or valid_from and test_from"
        )
    return marked


def _find_moments(
    rows: pl.DataFrame, valid_fraction: float, test_fraction: float
) -> tuple[float, float]:
    """The moments at which the fractions begin; rows of one moment are never torn apart."""
    times = np.sort(rows["timestamp"].to_numpy())
    n_test = max(1, round(len(times) * test_fraction))
    n_valid = max(1, round(len(times) * valid_fraction))
    return float(times[-min(n_test + n_valid, len(times))]), float(times[-min(n_test, len(times))])


def cap_history(rows: pl.DataFrame, max_history: int | None) -> pl.DataFrame:
    """Ordered, marked rows with at most `max_history` training rows a user, the latest ones."""
    if max_history is None:
        return rows
    train = pl.col("split") == TRAIN
    excess = train.sum().over("user").cast(pl.Int64) - max_history
    # Within a user the training rows come first, so their place counts from the oldest.
    kept = rows.filter(~train | (pl.col("position") >= excess))
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user")
    return kept.with_columns(place.alias("position"))

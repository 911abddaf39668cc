"""Small data artefacts for quantizers that look at more than vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifact import write_artifact
from genrec.data.dataset import load_dataset
from genrec.recipe import Recipe
from genrec.tokenizers.inputs import FitInput
from genrec.types import FloatArray

Choice = tuple[int, int, str]
"""User, item and part of the split."""


def write_data(
    out: Path,
    n_items: int,
    choices: Sequence[Choice] = (),
    columns: Mapping[str, Sequence[str | None]] | None = None,
) -> Path:
    """A data artefact of items `item-0` and so on, with these choices and columns."""
    users = sorted({user for user, _, _ in choices})
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        pl.DataFrame({"item_id": [f"item-{row}" for row in range(n_items)], **(columns or {})}
                     ).write_parquet(work.path / "items.parquet")  # fmt: skip
        pl.DataFrame(
            {"user_index": users, "user_id": [f"user-{user}" for user in users]},
            schema={"user_index": pl.Int64, "user_id": pl.String},
        ).write_parquet(work.path / "users.parquet")
        pl.DataFrame(
            sorted(choices),
            schema={"user_index": pl.Int64, "item_index": pl.Int64, "split": pl.String},
            orient="row",
        ).write_parquet(work.path / "interactions.parquet")
    return out


def draw_choices(group: Sequence[int], n_users: int = 120, per_user: int = 6) -> list[Choice]:
    """Users who choose items of one group only; the last choice of each is held out."""
    rng = np.random.default_rng(0)
    labels = np.asarray(group)
    choices = []
    for user in range(n_users):
        own = np.flatnonzero(labels == user % (labels.max() + 1))
        chosen = rng.choice(own, per_user, replace=False)
        choices += [(user, int(item), "train") for item in chosen[:-1]]
        choices.append((user, int(chosen[-1]), "test"))
    return choices


def make_given(data: Path, vectors: FloatArray | None = None) -> FitInput:
    """What a quantizer is given of this data."""
    dataset = load_dataset(data)
    return FitInput(dataset.item_ids, vectors, dataset, artifacts={"data": dataset.artifact})

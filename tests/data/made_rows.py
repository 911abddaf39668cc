"""Rows to filter and split, and a look at what came of them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from hypothesis import settings

from genrec.data.dataset import Dataset

quick = settings(deadline=None, max_examples=30)  # a shared machine has no reliable timings


def make_rows(pairs: Sequence[tuple[int, int]], **columns: Sequence[object]) -> pl.DataFrame:
    """Log rows of these (user, item) pairs in file order."""
    return pl.DataFrame(
        {
            "line": range(1, len(pairs) + 1),
            "user": [user for user, _ in pairs],
            "item": [item for _, item in pairs],
            **columns,
        },
        schema_overrides={"line": pl.Int64, "user": pl.UInt32, "item": pl.UInt32},
    )


def choices(dataset: Dataset, user_id: str) -> list[tuple[str, str]]:
    """A user's (item id, split), oldest first."""
    joined = dataset.interactions.join(dataset.users, on="user_index")
    rows = joined.filter(pl.col("user_id") == user_id).sort("position")
    return [
        (dataset.item_ids[item], split)
        for item, split in rows.select("item_index", "split").iter_rows()
    ]

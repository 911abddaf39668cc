"""What is left out of a log, and how much each filter took.

Owns the filters, as pure functions of rows, and the record of their counts. Knows no file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from genrec.errors import DataError
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


class Counts:
    """Users, items and interactions after each stage, logged as they come."""

    def __init__(self) -> None:
        """Begin before the first stage."""
        self.stages: list[dict[str, str | int]] = []

    def record(self, stage: str, rows: pl.DataFrame, way_out: str = "") -> None:
        """Keep and log what a stage left.

        Args:
            stage: its name.
            rows: what is left, with the columns `user` and `item`.
            way_out: what to change if that is nothing.

        Raises:
            DataError: nothing is left.
        """
        before = int(self.stages[-1]["interactions"]) if self.stages else None
        n_users, n_items = rows["user"].n_unique(), rows["item"].n_unique()
        self.stages.append(
            {"stage": stage, "users": n_users, "items": n_items, "interactions": rows.height}
        )
        change = "" if before is None else f"  ({rows.height - before:+,})"
        _log.info(
            "%-12s %11s users %11s items %13s interactions%s",
            *(stage, f"{n_users:,}", f"{n_items:,}", f"{rows.height:,}", change),
        )
        if not rows.height:
            raise DataError(
                f"no interactions are left after {stage} ({before or 0:,} before it); {way_out}"
            )


def drop_items(rows: pl.DataFrame, keep: Sequence[bool]) -> pl.DataFrame:
    """The rows whose item (a place in `keep`) is to be kept."""
    kept = np.asarray(keep, dtype=np.bool_)
    return rows.filter(pl.Series(kept[rows["item"].to_numpy()]))


def drop_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without exact repetitions: those equal to an earlier row in all but the line."""
    equal = [name for name in rows.columns if name != "line"]
    return rows.unique(subset=equal, keep="first", maintain_order=True)


def drop_repeated_pairs(rows: pl.DataFrame, order: Sequence[str]) -> pl.DataFrame:
    """The first row of each user and item in the order of time, in file order as before."""
    first = rows.sort(order).unique(subset=["user", "item"], keep="first")
    return first.sort("line")


def drop_low_ratings(rows: pl.DataFrame, least: float) -> pl.DataFrame:
    """The rows rated at least `least`, and those without a rating."""
    if "rating" not in rows.columns:
        raise DataError(
            f"min_rating is {least:g}, but the source has no ratings; "
            f"map the column in `columns`, or remove min_rating"
        )
    return rows.filter(pl.col("rating").is_null() | (pl.col("rating") >= least))


def keep_core(rows: pl.DataFrame, k_users: int, k_items: int) -> pl.DataFrame:
    """The largest part in which each user has `k_users` rows and each item `k_items`.

    Rows are counted, so that a user's repeated choice of an item counts each time. The part is
    unique whatever the order of removal; it may be empty.
    """
    users: IndexArray = rows["user"].to_numpy().astype(np.int64)
    items: IndexArray = rows["item"].to_numpy().astype(np.int64)
    kept: IndexArray = np.arange(rows.height)
    while len(kept):
        user, item = users[kept], items[kept]
        fine = (np.bincount(user)[user] >= k_users) & (np.bincount(item)[item] >= k_items)
        if fine.all():
            break
        kept = kept[fine]
    return rows[kept]


def sample_users(
    rows: pl.DataFrame, n_users: int, user_ids: Sequence[str], seed: int
) -> pl.DataFrame:
    """The rows of a seeded sample of users.

    The draw is from the sorted user ids, so that it does not depend on the order of the file.
    """
    present = sorted(rows["user"].unique().to_list(), key=user_ids.__getitem__)
    if n_users >= len(present):
        return rows
    drawn = np.random.default_rng(seed).choice(len(present), size=n_users, replace=False)
    chosen = pl.Series([present[place] for place in sorted(drawn)], dtype=pl.UInt32)
    return rows.filter(pl.col("user").is_in(chosen.implode()))

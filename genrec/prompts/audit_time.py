"""Leaks through time: choices that come too late, ties, sequences that are not in time's order.

Owns what can be seen in the interactions alone. Knows no row and no semantic id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import binomtest

from genrec.data.dataset import Dataset
from genrec.types import IndexArray

UNLIKELY = 1e-6
"""A share is taken for no accident below this probability."""

SORTED_SHARE = 0.95
"""Share of tied pairs in one direction that only sorting makes; above 0.75 it is worth a word."""

NOTABLE_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Findings:
    """What a part of the audit found.

    Attributes:
        faults: what must not be, one sentence each.
        notes: what is worth knowing.
        facts: what was checked, and counts.
    """

    faults: list[str]
    notes: list[str]
    facts: dict[str, Any]


def audit_times(dataset: Dataset, ties: str) -> Findings:
    """Whether every user's training choices come before the held-out ones, and how ties stand.

    Args:
        dataset: its interactions, each user's in order.
        ties: as the recipe says.
    """
    rows = dataset.interactions
    timed = "timestamp" in rows.columns and rows["timestamp"].null_count() == 0
    found = Findings([], [], {"timestamps": timed})
    if timed:
        _check_chronology(dataset, ties, found)
    _check_sorting(dataset, timed, ties, found)
    return found


def _check_chronology(dataset: Dataset, ties: str, found: Findings) -> None:
    held = pl.col("split") != "train"
    users = (
        dataset.interactions.group_by("user_index")
        .agg(
            last=pl.col("timestamp").filter(~held).max(),
            next=pl.col("timestamp").filter(held).min(),
            tied=pl.col("timestamp").len() > pl.col("timestamp").n_unique(),
        )
        .sort("user_index")
    )
    late = users.filter(pl.col("last") > pl.col("next"))
    crossing = users.filter(pl.col("last") == pl.col("next"))
    found.facts.update(
        users=users.height,
        users_with_late_training=late.height,
        users_with_ties=int(users["tied"].sum()),
        users_with_ties_across_the_split=crossing.height,
    )
    if late.height:
        user, last, following = late.row(0)[:3]
        found.faults.append(
            f"{late.height:,} users have training choices that are later than a held-out one, such "
            f"as {_name_user(dataset, user)} ({last:.0f} after {following:.0f}); make the data in "
            f"the order of time (without `position`, or with one that agrees with the timestamps)"
        )
    if crossing.height and ties == "refuse":
        found.faults.append(
            f"{crossing.height:,} users have a training and a held-out choice of the same moment, "
            f"such as {_name_user(dataset, crossing.row(0)[0])}, and the recipe says ties: refuse; "
            f"use finer timestamps, or ties=file to take the file's order for the order of time"
        )
    elif crossing.height:
        found.notes.append(
            f"{crossing.height:,} of {users.height:,} users have a training and a held-out choice "
            f"of the same moment; they are in the file's order"
        )


def _check_sorting(dataset: Dataset, timed: bool, ties: str, found: Findings) -> None:
    """Whether neighbours whose order no timestamp decides are in the order of item ids."""
    rows = dataset.interactions
    users, items = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
    pairs = users[1:] == users[:-1]
    if timed:
        times = rows["timestamp"].to_numpy()
        pairs &= times[1:] == times[:-1]
    rank = _rank_ids(dataset.item_ids)
    steps = (rank[items[1:]] - rank[items[:-1]])[pairs]
    steps = steps[steps != 0]
    n_rising = int((steps > 0).sum())
    share = max(n_rising, len(steps) - n_rising) / max(len(steps), 1)
    chance = binomtest(n_rising, len(steps)).pvalue if len(steps) else 1.0
    found.facts.update(undecided_pairs=len(steps), undecided_pairs_in_item_order=n_rising)
    if chance >= UNLIKELY or share < NOTABLE_SHARE:
        return
    what = "ties" if timed else "choices"
    direction = "rising" if 2 * n_rising > len(steps) else "falling"
    told = (
        f"{share:.1%} of {len(steps):,} neighbouring {what} are in {direction} order of item id, "
        f"so that the order of a user's {what} tells of the catalogue and not of time"
    )
    if share < SORTED_SHARE or ties == "by-item":
        found.notes.append(told)
        return
    found.faults.append(
        f"{told}: the trap of files that are sorted by product code. Make the data from a file in "
        f"the order of time (for ties: in one that is not sorted by product), or say ties=by-item "
        f"if you know and accept it"
    )


def _rank_ids(item_ids: tuple[str, ...]) -> IndexArray:
    """Each item's place in the order of outside ids, as numbers where all of them are."""
    numbers = all(item_id.isascii() and item_id.isdigit() for item_id in item_ids)
    keys: list[Any] = [int(item_id) for item_id in item_ids] if numbers else list(item_ids)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rank = np.empty(len(item_ids), dtype=np.int64)
    rank[order] = np.arange(len(item_ids))
    return rank


def _name_user(dataset: Dataset, user: int) -> str:
    return repr(dataset.users.filter(pl.col("user_index") == user)["user_id"].item())

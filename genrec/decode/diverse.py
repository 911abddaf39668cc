"""Beams in groups that keep out of each other's way.

Owns which candidates each group keeps. Knows no model and no trie; candidates are rows of flat
arrays, and a group is a column of a table that says which of them it holds.

Source: Vijayakumar et al. 2016, Diverse Beam Search, Hamming diversity. The penalty is on the first
code only: where codes go from coarse to fine, that is what makes lists differ, and items of
different first codes have no later code in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from genrec.decode.beam import count_within, keep_best
from genrec.types import FloatArray, IndexArray

Members = NDArray[np.bool_]
"""(C, G) which candidates each group holds."""


def split_evenly(total: int, n_groups: int) -> list[int]:
    """The sizes of groups that differ by at most one, the larger first."""
    least, larger = divmod(total, n_groups)
    return [least + (group < larger) for group in range(n_groups)]


def choose_members(
    scores: FloatArray,
    user_row: IndexArray,
    tie_key: IndexArray,
    may: Members,
    sizes: Sequence[int],
    *,
    penalty: float = 0.0,
    exclusive: bool = False,
) -> Members:
    """What each group keeps of the candidates that it may, one group after another.

    Args:
        scores: (C,) float32, finite.
        user_row: (C,) the user of each candidate; never falls.
        tie_key: (C,) among equal scores the lower key wins; distinct within a user.
        may: what each group may keep.
        sizes: how many each group keeps at most, of each user's.
        penalty: what a candidate loses for each earlier group that kept it.
        exclusive: what an earlier group kept, no later one does.
    """
    chosen = np.zeros_like(may)
    n_users = int(user_row[-1]) + 1
    for group, size in enumerate(sizes):
        times = np.count_nonzero(chosen, axis=1)
        rows = np.flatnonzero(may[:, group] & ((times == 0) | (not exclusive)))
        if not size or not len(rows):
            continue
        value = scores[rows] - np.float32(penalty) * times[rows].astype(np.float32)
        kept = keep_best(torch.from_numpy(value), user_row[rows], n_users, size, tie_key[rows])
        chosen[rows[kept.index[kept.index >= 0]], group] = True
    return chosen


def choose_fill(
    scores: FloatArray, user_row: IndexArray, tie_key: IndexArray, n_missing: IndexArray
) -> IndexArray:
    """The candidates that fill the places which each user has left, best first.

    Args:
        scores: (C,) of each candidate.
        user_row: (C,) its user.
        tie_key: (C,) among equal scores the lower key wins.
        n_missing: (U,) how many each user lacks.
    """
    order = np.lexsort((tie_key, -scores, user_row))
    users = user_row[order]
    filling: IndexArray = order[count_within(users) < n_missing[users]]
    return filling

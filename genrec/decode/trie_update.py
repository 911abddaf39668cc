"""A trie's arrays with some leaves more or less, merged and never sorted again.

Owns the merging of sorted levels. Knows neither items nor how a trie is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.types import IndexArray

IntArray = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Levels:
    """A trie's nodes.

    Shapes:
        codes: one (nodes of level d + 1,) array for each d < L: the last code of each node.
        first_child: one (nodes of level d + 1,) array for each d < L: where each node's children
            begin on the next level; the last entry closes the last node.
    """

    codes: tuple[IntArray, ...]
    first_child: tuple[IntArray, ...]


@dataclass(slots=True)
class _Rows:
    """New rows on one level, rising: where each prefix is, or would be, among the level's nodes.

    Shapes:
        place: (M,) int64, the prefix's node, or the node before which it would come.
        exists: (M,) bool, whether the prefix is a node.
        starts: (M,) bool, whether a new prefix of this length begins here.
    """

    place: IndexArray
    exists: Mask
    starts: Mask


def insert_rows(levels: Levels, rows: IntArray) -> tuple[Levels, IndexArray, Mask]:
    """The levels with more leaves, where each new leaf goes, and which rows were leaves already.

    Args:
        levels: a trie's nodes.
        rows: (M, L) codes, rising; where two are alike or one is a leaf, the levels mean nothing.

    Returns:
        The new levels; (M,) the old leaf before which each row comes; (M,) which are leaves.
    """
    codes, first_child = [], []
    state = _Rows(np.zeros(len(rows), np.int64), np.ones(len(rows), np.bool_), _first(len(rows)))
    for level, column in enumerate(rows.T):
        below = _step_down(levels, level, column, state)
        is_new = below.starts & ~below.exists
        codes.append(_merge(levels.codes[level], below.place[is_new], column[is_new]))
        first_child.append(_count_children(levels.first_child[level], state, is_new))
        state = below
    return Levels(tuple(codes), tuple(first_child)), state.place, state.exists


def _step_down(levels: Levels, level: int, column: IntArray, above: _Rows) -> _Rows:
    """The rows one level further: one bisection among the children of those that exist."""
    codes, first_child = levels.codes[level], levels.first_child[level]
    low = first_child[above.place].astype(np.int64)
    # A new prefix has no children yet; all of its own go where its parent's place begins.
    after = first_child[np.minimum(above.place + 1, len(first_child) - 1)].astype(np.int64)
    high = end = np.where(above.exists, after, low)
    while np.any(low < high):
        middle = (low + high) // 2
        is_below = (low < high) & (codes[np.minimum(middle, len(codes) - 1)] < column)
        low, high = np.where(is_below, middle + 1, low), np.where(is_below, high, middle)
    exists = (low < end) & (codes[np.minimum(low, len(codes) - 1)] == column)
    starts = above.starts.copy()
    starts[1:] |= column[1:] != column[:-1]
    return _Rows(low, exists, starts)


def _count_children(first_child: IntArray, above: _Rows, is_new: Mask) -> IntArray:
    """Where each node's children begin, once the new children are there and the new parents too."""
    counts = np.diff(first_child.astype(np.int64))
    np.add.at(counts, above.place[is_new & above.exists], 1)
    new_parents = above.starts & ~above.exists
    parent = np.cumsum(new_parents) - 1
    theirs = is_new & ~above.exists
    n_theirs = np.bincount(parent[theirs], minlength=int(new_parents.sum()))
    return _close_counts(np.insert(counts, above.place[new_parents], n_theirs))


def delete_leaves(levels: Levels, kept: Mask) -> Levels:
    """The levels with only the leaves that are kept, and the nodes that still lead to one."""
    codes, first_child = [], []
    for level in range(len(levels.codes) - 1, -1, -1):
        codes.append(narrow(levels.codes[level][kept]))
        starts = levels.first_child[level].astype(np.int64)
        before = np.concatenate([[0], np.cumsum(kept)])
        counts = np.diff(before[starts])
        kept = counts > 0
        first_child.append(_close_counts(counts[kept]))
    return Levels(tuple(reversed(codes)), tuple(reversed(first_child)))


def narrow_type(largest: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds values up to this one."""
    return np.min_scalar_type(largest)


def narrow(values: IntArray) -> IntArray:
    """The same values in the smallest unsigned type that holds them."""
    return values.astype(narrow_type(int(values.max())), copy=False)


def _first(count: int) -> Mask:
    mask = np.zeros(count, dtype=np.bool_)
    mask[0] = True
    return mask


def _merge(values: IntArray, places: IndexArray, added: IntArray) -> IntArray:
    largest = max(int(values.max()), int(added.max(initial=0)))
    return np.insert(values.astype(narrow_type(largest), copy=False), places, added)


def _close_counts(counts: IndexArray) -> IntArray:
    return narrow(np.concatenate([[0], np.cumsum(counts)]))

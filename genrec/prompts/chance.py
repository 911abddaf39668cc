"""Chance that depends on the recipe's seed and on the row alone.

Owns numbers drawn row by row, so that processes that write different rows draw the same ones.
Knows no task.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from genrec.types import IndexArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def draw_numbers(seed: int, purpose: str, subjects: IndexArray, n: int = 1) -> NDArray[np.uint64]:
    """(R, n) uniform 64-bit numbers, a pure function of seed, purpose and subject.

    Args:
        seed: the recipe's (with the pass mixed in: `Corpus.seed`).
        purpose: another purpose draws other numbers.
        subjects: (R,) ints.
        n: how many numbers a row.

    Source:
        Steele, Lea and Flood, OOPSLA 2014: the SplitMix64 mixing function.
    """
    start = np.uint64((seed * 0x10001 + zlib.crc32(purpose.encode())) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        rows = _mix(subjects.astype(np.uint64) * _STEP + start)
        places = np.arange(1, n + 1, dtype=np.uint64) * _STEP
        return _mix(rows[:, None] + places)


def draw_below(seed: int, purpose: str, subjects: IndexArray, most: int, n: int = 1) -> IndexArray:
    """(R, n) uniform ints from 0 to `most` - 1."""
    return (draw_numbers(seed, purpose, subjects, n) % np.uint64(most)).astype(np.int64)


def draw_distinct(
    seed: int, purpose: str, subjects: IndexArray, sizes: IndexArray, n: int
) -> IndexArray:
    """(R, n) different ints below each row's size, rising; -1 in front where the size is under n.

    Args:
        seed: as for `draw_numbers`.
        purpose: as for `draw_numbers`.
        subjects: (R,) ints.
        sizes: (R,) how many there are to choose from in each row; 0 is allowed.
        n: how many to choose.

    Source:
        Bentley and Floyd, CACM 30(9), 1987: a sample without replacement in n draws.
    """
    numbers = draw_numbers(seed, purpose, subjects, n)
    chosen = np.full((len(subjects), n), -1, dtype=np.int64)
    for place in range(n):
        last = sizes - n + place  # the largest int that may be drawn at this place
        drawn = (numbers[:, place] % np.maximum(last + 1, 1).astype(np.uint64)).astype(np.int64)
        taken = (chosen[:, :place] == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(last < 0, -1, np.where(taken, last, drawn))
    chosen.sort(axis=1)
    return chosen


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""Which items share a cell of the code space, and which cells are taken.

Owns the numbering of prefixes and cells. Knows neither latents nor a rule for who moves.

A prefix is all codes but the last; a cell is a whole code sequence. Both are numbered densely, in
the order of their codes, so that one integer stands for a row of codes and sorting is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.types import IndexArray

_LARGEST_KEY = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Cells:
    """Where N items and M taken code sequences lie, G prefixes being in use.

    Shapes:
        keys: (G,) rising; `pack_rows` of the prefixes.
        cells: (N,) int64, each item's prefix number times `n_last`, plus its last code.
        taken: (M,) int64, the cells that are not to be given out, rising.
    """

    keys: NDArray[Any]
    cells: IndexArray
    taken: IndexArray
    n_last: int

    def find_taken(self, cells: IndexArray) -> NDArray[np.bool_]:
        """Which of these cells are not to be given out."""
        return contain_values(self.taken, cells)

    def find_shared(self) -> NDArray[np.bool_]:
        """Which items (N,) share their cell with another item or with a taken one."""
        _, place, counts = np.unique(self.cells, return_inverse=True, return_counts=True)
        return (counts > 1)[place] | self.find_taken(self.cells)


def find_cells(
    codes: NDArray[np.int32], taken: NDArray[np.int32], codebook_sizes: Sequence[int]
) -> Cells:
    """The cells of items and of taken code sequences.

    Shapes:
        codes: (N, L) int32.
        taken: (M, L) int32.
    """
    n_last = codebook_sizes[-1]
    both = np.concatenate([codes, taken])
    keys, group = np.unique(pack_rows(both[:, :-1], codebook_sizes[:-1]), return_inverse=True)
    cells = group.astype(np.int64) * n_last + both[:, -1]
    return Cells(keys, cells[: len(codes)], np.sort(cells[len(codes) :]), n_last)


def pack_rows(rows: NDArray[np.int32], sizes: Sequence[int]) -> NDArray[Any]:
    """One value a row, equal where rows are and in their order: an integer, or bytes if too large.

    Shapes:
        rows: (n, columns) int32, column j below sizes[j].
        returns (n,) int64, or bytes of one length.
    """
    if not sizes:
        return np.zeros(len(rows), dtype=np.int64)
    if math.prod(sizes) > _LARGEST_KEY:
        # Big-endian bytes of numbers that are not negative sort as the numbers do.
        wide = np.ascontiguousarray(rows, dtype=">i4")
        return wide.view(f"S{wide.dtype.itemsize * wide.shape[1]}").ravel()
    key = np.zeros(len(rows), dtype=np.int64)
    for column, size in zip(rows.T, sizes, strict=True):
        key *= size
        key += column
    return key


def contain_values(values: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the wanted are among values that rise."""
    if not len(values):
        return np.zeros(len(wanted), dtype=np.bool_)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    found: NDArray[np.bool_] = values[place] == wanted
    return found


def rank_within(label: IndexArray) -> IndexArray:
    """How many earlier entries have the same label, for each entry."""
    order = np.argsort(label, kind="stable")
    ordered = label[order]
    is_first = np.ones(len(label), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    rank = np.empty(len(label), dtype=np.int64)
    rank[order] = np.arange(len(label)) - starts[np.cumsum(is_first) - 1]
    return rank

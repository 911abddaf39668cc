"""The prefix groups in which items collide, a few at a time.

Owns how latents are read: only those of colliding items, in batches, so that memory does not grow
with the catalogue. Knows no rule for who moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.errors import DataError
from genrec.tokenizers.uniqueness.cells import Cells, rank_within
from genrec.tokenizers.uniqueness.nearest import DistanceArray, measure_distances, sum_codes
from genrec.types import FloatArray, IndexArray

LatentReader = Callable[[IndexArray], FloatArray]
"""The latents (n, d) of the items in some rows, computed when asked for."""

_CHUNK_DISTANCES = 1 << 20
_READ_ROWS = 8192


@dataclass(frozen=True, slots=True)
class GroupChunk:
    """The colliding items of b whole prefix groups.

    Shapes:
        rows: (n,) int64, the items, group by group and rising within one.
        group: (n,) int64, each item's group, counted from 0 in this chunk.
        last: (n,) int32, the last code of each.
        is_taken: (n,) bool, whether its cell is one that no item may keep.
        distances: (n, K) float64, from each item to each last code.
        held: (b, K) bool, the last codes that some item or taken sequence of the group has.
        surplus: (s,) int64, items for which the group has no room whatever the rule: each equals
            K others of its cell.
    """

    rows: IndexArray
    group: IndexArray
    last: NDArray[np.int32]
    is_taken: NDArray[np.bool_]
    distances: DistanceArray
    held: NDArray[np.bool_]
    surplus: IndexArray


def walk_groups(
    codes: NDArray[np.int32],
    codebooks: Sequence[FloatArray],
    cells: Cells,
    read_latents: LatentReader,
) -> Iterator[GroupChunk]:
    """Every prefix group in which items share a cell with another, or with a taken one.

    Shapes:
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32.

    Raises:
        DataError: latents that are not finite or not as wide as the codebooks.
    """
    group = cells.cells // cells.n_last
    rows = np.flatnonzero(cells.find_shared())
    rows = rows[np.argsort(group[rows], kind="stable")]
    is_taken = cells.find_taken(cells.cells[rows])
    is_busy = np.zeros(len(cells.keys), dtype=np.bool_)
    is_busy[group[rows]] = True
    held = np.concatenate([cells.cells[is_busy[group]], _pick_busy(cells, is_busy)])
    held.sort()
    for start, stop in _cut_groups(group[rows], max(1, _CHUNK_DISTANCES // cells.n_last)):
        chunk = rows[start:stop]
        latents = read_rows(read_latents, chunk, codebooks[-1].shape[1])
        kept = _keep_distinct(latents, cells.cells[chunk], cells.n_last)
        surplus, chunk, latents = chunk[~kept], chunk[kept], latents[kept]
        numbers, local = np.unique(group[chunk], return_inverse=True)
        residual = latents - sum_codes(codes[chunk, :-1], codebooks)
        yield GroupChunk(
            rows=chunk,
            group=local,
            last=codes[chunk, -1],
            is_taken=is_taken[start:stop][kept],
            distances=measure_distances(residual, codebooks[-1]),
            held=_mark_held(held, numbers, cells.n_last),
            surplus=surplus,
        )


def read_rows(read_latents: LatentReader, rows: IndexArray, width: int) -> FloatArray:
    """The latents of some items, read a batch at a time.

    Raises:
        DataError: they are not finite, or of another shape.
    """
    latents = np.empty((len(rows), width), dtype=np.float32)
    for start in range(0, len(rows), _READ_ROWS):
        batch = rows[start : start + _READ_ROWS]
        found = read_latents(batch)
        if found.shape != (len(batch), width):
            raise DataError(
                f"latents {found.shape} of {len(batch)} items do not fit codebooks of width "
                f"{width}: there must be one row an item"
            )
        latents[start : start + len(batch)] = found
    if not np.isfinite(latents).all():
        raise DataError("latents hold NaN or infinity; check the quantizer's training")
    return latents


def _pick_busy(cells: Cells, is_busy: NDArray[np.bool_]) -> IndexArray:
    return cells.taken[is_busy[cells.taken // cells.n_last]]


def _cut_groups(group: IndexArray, most: int) -> Iterator[tuple[int, int]]:
    """Spans of whole groups with at most so many rows together, at least one group each."""
    ends = np.append(np.flatnonzero(group[1:] != group[:-1]) + 1, len(group))
    start = 0
    while start < len(group):
        place = max(
            int(np.searchsorted(ends, start + most, "right")) - 1,
            int(np.searchsorted(ends, start, "right")),
        )
        yield start, int(ends[place])
        start = int(ends[place])


def _keep_distinct(latents: FloatArray, cell: IndexArray, most: int) -> NDArray[np.bool_]:
    """All items but those that equal so many earlier ones of their cell.

    Catalogues hold thousands of items without text. A group has `most` places at best, and equals
    are interchangeable, so the rest need not be looked at.
    """
    _, place, counts = np.unique(cell, return_inverse=True, return_counts=True)
    if counts.max() <= most:
        return np.ones(len(cell), dtype=np.bool_)
    same = np.unique(latents + 0.0, axis=0, return_inverse=True)[1].ravel()  # -0.0 becomes 0.0
    return rank_within(place * len(cell) + same) < most


def _mark_held(held: IndexArray, numbers: IndexArray, n_last: int) -> NDArray[np.bool_]:
    """(b, K), True where a cell of these groups is in use; `held` rises and so do `numbers`."""
    first = np.searchsorted(held, numbers[0] * n_last)
    end = np.searchsorted(held, (numbers[-1] + 1) * n_last)
    group, code = np.divmod(held[first:end], n_last)
    marked = np.zeros((len(numbers), n_last), dtype=np.bool_)
    marked[np.searchsorted(numbers, group), code] = True
    return marked

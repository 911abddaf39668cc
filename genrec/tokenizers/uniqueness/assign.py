"""Unique codes by optimal assignment.

Owns the rule that gives each item its own code sequence, and what any such rule hands back. Knows
codes, codebooks and latents; neither how they were learned nor what the items are.

Items that share all their codes are separated on the last level. Within a group of items that share
the codes before it, one item of each colliding cell stays, no item that is alone in its cell moves,
and the others are matched to the group's free codes at the least total distance. A group with more
items than codes sends those it cannot place to the next-nearest prefix with room. Code sequences
that are taken (by items that may not move, or by removed ones) count as cells that no item may
keep. Distances are squared and Euclidean, between an item's latent and the sum of its codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from genrec.errors import CapacityError, DataError
from genrec.tokenizers.uniqueness.cells import Cells, find_cells
from genrec.tokenizers.uniqueness.groups import GroupChunk, LatentReader, read_rows, walk_groups
from genrec.tokenizers.uniqueness.nearest import DistanceArray, sum_codes
from genrec.tokenizers.uniqueness.spill import place_spilled
from genrec.types import FloatArray, IndexArray

CodeArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Unique codes and what uniqueness cost.

    Shapes:
        codes: (N, L) int32, no two rows alike.
        moved: (N,) bool, True where a row differs from the quantizer's own.
        added_distance: (N,) float64, how much further a moved item is from its codes; 0 elsewhere.
        codebook_sizes: how many codes each of the L levels has.
    """

    codes: CodeArray
    moved: NDArray[np.bool_]
    added_distance: DistanceArray
    codebook_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Placement:
    """New last codes for some items, what each adds in distance, and the items without a place."""

    rows: IndexArray
    last: IndexArray
    added: DistanceArray
    unplaced: IndexArray


def check_capacity(n_items: int, codebook_sizes: Sequence[int], n_taken: int = 0) -> None:
    """Raise unless every item can have codes of its own.

    Raises:
        CapacityError: the catalogue is larger than the code space, or than what is left of it.
    """
    space = math.prod(codebook_sizes)
    if n_items + n_taken > space:
        sizes = " x ".join(str(size) for size in codebook_sizes)
        left = f", of which {n_taken:,} are taken" if n_taken else ""
        raise CapacityError(
            f"{n_items:,} items cannot have unique codes: codebook_sizes {sizes} make {space:,}"
            f"{left}; add a level or more codes a level"
        )


def assign_unique(
    codes: CodeArray,
    codebooks: Sequence[FloatArray],
    read_latents: LatentReader,
    taken: CodeArray | None = None,
) -> Assignment:
    """Codes in which no two items are alike; items that did not collide keep theirs.

    Args:
        codes: the quantizer's own codes.
        codebooks: one a level; a latent is near the sum of its codes' rows.
        read_latents: what the quantizer quantizes, asked for colliding items only.
        taken: code sequences that are not to be given out, no two alike.

    Shapes:
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32; K may differ.
        taken: (M, L) int32.

    Raises:
        CapacityError: more items than code sequences.
        DataError: codes that do not fit the codebooks, or latents that are not finite.
    """
    sizes = tuple(len(book) for book in codebooks)
    taken = check_codes(codes, sizes, taken)
    check_capacity(len(codes), sizes, len(taken))
    cells = find_cells(codes, taken, sizes)
    unique, added = codes.copy(), np.zeros(len(codes))
    unplaced = [np.empty(0, dtype=np.int64)]
    for chunk in walk_groups(codes, codebooks, cells, read_latents):
        for done in _separate_groups(chunk):
            unique[done.rows, -1] = done.last
            added[done.rows] = done.added
            unplaced.append(done.unplaced)
    spilled = np.sort(np.concatenate(unplaced))
    if len(spilled):
        latents = read_rows(read_latents, spilled, codebooks[-1].shape[1])
        held = _list_held(cells, unique, spilled)
        unique[spilled] = place_spilled(latents, cells, held, codebooks)
        after = ((latents - sum_codes(unique[spilled], codebooks)) ** 2).sum(axis=1)
        before = ((latents - sum_codes(codes[spilled], codebooks)) ** 2).sum(axis=1)
        added[spilled] = after - before
    return Assignment(unique, (codes != unique).any(axis=1), added, sizes)


def check_codes(
    codes: CodeArray, codebook_sizes: Sequence[int], taken: CodeArray | None
) -> CodeArray:
    """The taken codes, an empty table where there are none, or an error if codes do not fit.

    Raises:
        DataError: not one code a level, or codes outside the codebooks.
    """
    n_levels = len(codebook_sizes)
    if taken is None:
        taken = np.empty((0, n_levels), dtype=np.int32)
    for name, table in (("codes", codes), ("taken codes", taken)):
        if table.ndim != 2 or table.shape[1] != n_levels:  # noqa: PLR2004 - a table has two axes
            raise DataError(
                f"{name} {table.shape} do not fit {n_levels} codebooks: there must be one code a "
                f"level"
            )
        if ((table < 0) | (table >= np.array(codebook_sizes))).any():
            raise DataError(
                f"{name} lie outside the codebooks, whose sizes are {list(codebook_sizes)}"
            )
    return taken


def _list_held(cells: Cells, unique: CodeArray, spilled: IndexArray) -> IndexArray:
    """The cells in use, rising, once all but the spilled items have their last code."""
    own = cells.cells // cells.n_last * cells.n_last + unique[:, -1]
    return np.sort(np.concatenate([np.delete(own, spilled), cells.taken]))


def _separate_groups(chunk: GroupChunk) -> Iterable[_Placement]:
    """Places for a chunk's items: all at once where nobody competes, else group by group.

    Were codes not exclusive, each item would take its nearest free one, and of each colliding cell
    the item that this saves the most would stay. Where that names no code twice it is a least-cost
    assignment, since no assignment can cost less; only the other groups need the full search.
    """
    every = np.arange(len(chunk.rows))
    cost = np.where(chunk.held[chunk.group], np.inf, chunk.distances)
    nearest = cost.argmin(axis=1)
    added = cost[every, nearest] - chunk.distances[every, chunk.last]
    moves = np.ones(len(every), dtype=np.bool_)
    moves[_find_stayers(chunk, added)] = False
    wanted, counts = np.unique((chunk.group * cost.shape[1] + nearest)[moves], return_counts=True)
    has_clash = np.zeros(len(chunk.held), dtype=np.bool_)
    has_clash[wanted[counts > 1] // cost.shape[1]] = True
    has_clash[chunk.group[moves & np.isinf(added)]] = True
    easy = moves & ~has_clash[chunk.group]
    yield _Placement(chunk.rows[easy], nearest[easy], added[easy], chunk.surplus)
    for group in np.flatnonzero(has_clash):
        yield match_group(chunk, int(group))


def _find_stayers(chunk: GroupChunk, saved: DistanceArray) -> IndexArray:
    """Of each cell that is not taken the item that saves most by staying; the first of equals."""
    cell = chunk.group * chunk.distances.shape[1] + chunk.last
    order = np.lexsort((-saved, cell))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = cell[order][1:] != cell[order][:-1]
    stayers = order[first]
    return stayers[~chunk.is_taken[stayers]]


def match_group(chunk: GroupChunk, group: int) -> _Placement:
    """Distinct last codes for one group's items at the least total distance.

    A colliding cell's code is offered to that cell's items only, at a price below any other: one of
    them stays, and which one is part of the optimum.
    """
    mine = np.flatnonzero(chunk.group == group)
    last, distances = chunk.last[mine], chunk.distances[mine]
    may_stay = ~chunk.is_taken[mine]
    is_contested = np.zeros(distances.shape[1], dtype=np.bool_)
    is_contested[last[may_stay]] = True
    columns = np.flatnonzero(~chunk.held[group] | is_contested)
    if not len(columns):
        nothing = np.empty(0, dtype=np.int64)
        return _Placement(nothing, nothing, np.empty(0), chunk.rows[mine])
    cost = distances[:, columns]
    own = (last[:, None] == columns[None]) & may_stay[:, None]
    bonus = (cost.max() + 1) * min(cost.shape)
    cost[is_contested[columns] & ~own] = np.inf
    cost[own] -= bonus
    placed, chosen = linear_sum_assignment(cost)
    code = columns[chosen]
    added = distances[placed, code] - distances[placed, last[placed]]
    unplaced = np.delete(mine, placed)
    return _Placement(chunk.rows[mine[placed]], code, added, chunk.rows[unplaced])

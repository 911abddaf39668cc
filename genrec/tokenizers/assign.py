"""Unique codes by optimal assignment.

Owns the rule that gives each item its own code sequence. Knows latents, codes and codebooks;
neither how they were learned nor what the items are.

Items that share all their codes are separated on the last level. Within a group of items that share
the codes before it, one item of each colliding cell stays, no item that is alone in its cell moves,
and the others are matched to the group's free codes at the least total distance. A group with more
items than codes sends those it cannot place to the next-nearest prefix with room. Distances are
squared and Euclidean, between an item's latent and the sum of its codes, because reconstruction
error adds up in squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from genrec.errors import CapacityError, DataError
from genrec.types import FloatArray, IndexArray

CodeArray = NDArray[np.int32]
DistanceArray = NDArray[np.float64]

_FIRST_WIDTH = 16
_WIDER = 8
_CHUNK_DISTANCES = 1 << 24


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


def check_capacity(n_items: int, codebook_sizes: Sequence[int]) -> None:
    """Raise unless every item can have codes of its own.

    Raises:
        CapacityError: the catalogue is larger than the code space.
    """
    space = math.prod(codebook_sizes)
    if n_items > space:
        sizes = " x ".join(str(size) for size in codebook_sizes)
        raise CapacityError(
            f"{n_items:,} items cannot have unique codes: codebook_sizes {sizes} make {space:,}; "
            f"add a level or more codes a level"
        )


def assign_unique(
    latents: FloatArray, codes: CodeArray, codebooks: Sequence[FloatArray]
) -> Assignment:
    """Codes in which no two items are alike; items that did not collide keep theirs.

    Args:
        latents: what the quantizer quantizes.
        codes: the quantizer's own codes.
        codebooks: one a level; a latent is near the sum of its codes' rows.

    Shapes:
        latents: (N, d) float32.
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32; K may differ.

    Raises:
        CapacityError: more items than code sequences.
        DataError: shapes or codes that do not fit the codebooks, or latents that are not finite.
    """
    _check_inputs(latents, codes, codebooks)
    check_capacity(len(codes), [len(book) for book in codebooks])
    unique = codes.copy()
    prefixes, group = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group, minlength=len(prefixes)))[:-1])
    spilled: list[int] = []
    for index in _find_colliding(codes, group):
        residual = latents[members[index]] - _sum_codes(prefixes[index][None], codebooks)
        last, unplaced = _separate_group(codes[members[index], -1], residual, codebooks[-1])
        unique[members[index], -1] = last
        spilled.extend(members[index][unplaced].tolist())
    if spilled:
        homes = {tuple(prefix): members[i] for i, prefix in enumerate(prefixes.tolist())}
        _place_spilled(np.array(sorted(spilled)), latents, unique, codebooks, homes)
    return _describe_moves(latents, codes, unique, codebooks)


def _check_inputs(latents: FloatArray, codes: CodeArray, codebooks: Sequence[FloatArray]) -> None:
    width = codebooks[0].shape[1]
    if codes.shape != (len(latents), len(codebooks)) or latents.shape[1:] != (width,):
        raise DataError(
            f"latents {latents.shape} and codes {codes.shape} do not fit {len(codebooks)} "
            f"codebooks of width {width}: there must be one row an item and one code a level"
        )
    if not np.isfinite(latents).all():
        raise DataError("latents hold NaN or infinity; check the quantizer's training")
    sizes = np.array([len(book) for book in codebooks])
    if ((codes < 0) | (codes >= sizes)).any():
        raise DataError(f"codes lie outside the codebooks, whose sizes are {sizes.tolist()}")


def _find_colliding(codes: CodeArray, group: IndexArray) -> list[int]:
    """The groups in which at least two items share their last code too, in order."""
    cells = np.stack([group, codes[:, -1]], axis=1)
    shared, counts = np.unique(cells, axis=0, return_counts=True)
    return sorted(set(shared[counts > 1, 0].tolist()))


def _sum_codes(codes: CodeArray, codebooks: Sequence[FloatArray]) -> DistanceArray:
    """The sums of the first levels' codebook rows; as many levels as `codes` has columns."""
    total = np.zeros((len(codes), codebooks[0].shape[1]))
    for level in range(codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total


def _measure_distances(residual: DistanceArray | FloatArray, codebook: FloatArray) -> DistanceArray:
    """Squared distances (n, K) from each residual to each code."""
    residual, codebook = residual.astype(np.float64), codebook.astype(np.float64)
    square = (residual**2).sum(1)[:, None] + (codebook**2).sum(1)[None]
    distances: DistanceArray = np.maximum(square - 2 * residual @ codebook.T, 0)
    return distances


def _separate_group(
    last: CodeArray, residual: DistanceArray, codebook: FloatArray
) -> tuple[CodeArray, NDArray[np.bool_]]:
    """The group's last codes, distinct among the placed, and which items found no place.

    A colliding cell's code is offered to that cell's items only, at a price below any other: one of
    them stays, and which one is part of the optimum.
    """
    holders = np.bincount(last, minlength=len(codebook))
    rows = np.flatnonzero(holders[last] > 1)
    columns = np.flatnonzero(holders != 1)
    cost = _measure_distances(residual[rows], codebook[columns])
    own = last[rows][:, None] == columns[None]
    bonus = (cost.max() + 1) * min(cost.shape)
    cost[(holders[columns] > 1)[None] & ~own] = np.inf
    cost[own] -= bonus
    placed, chosen = linear_sum_assignment(cost)
    result = last.copy()
    result[rows[placed]] = columns[chosen]
    unplaced = np.zeros(len(last), dtype=np.bool_)
    unplaced[np.setdiff1d(rows, rows[placed])] = True
    return result, unplaced


def _place_spilled(
    spilled: IndexArray,
    latents: FloatArray,
    unique: CodeArray,
    codebooks: Sequence[FloatArray],
    homes: dict[tuple[int, ...], IndexArray],
) -> None:
    """Write codes for the items that their own prefix has no room for into `unique`."""
    homeless = set(spilled.tolist())
    waiting = set(homeless)
    arrivals: dict[tuple[int, ...], list[int]] = {}
    free: dict[tuple[int, ...], IndexArray] = {}
    n_prefixes = math.prod(len(book) for book in codebooks[:-1])
    width = min(_FIRST_WIDTH, n_prefixes)
    while waiting:
        pending = np.array(sorted(waiting))
        rows, inverse = np.unique(latents[pending], axis=0, return_inverse=True)
        ranked = rank_prefixes(rows, codebooks[:-1], width)
        for item, choices in zip(pending.tolist(), ranked[inverse.ravel()], strict=True):
            for prefix in map(tuple, choices.tolist()):
                if prefix not in free:
                    held = [m for m in homes.get(prefix, ()) if m not in homeless]
                    free[prefix] = np.setdiff1d(np.arange(len(codebooks[-1])), unique[held, -1])
                if len(arrivals.get(prefix, ())) < len(free[prefix]):
                    arrivals.setdefault(prefix, []).append(item)
                    break
        waiting.difference_update(*arrivals.values())
        assert not waiting or width < n_prefixes, "the capacity check leaves room for every item"
        width = min(width * _WIDER, n_prefixes)
    for prefix, items in arrivals.items():
        unique[items, :-1] = prefix
        residual = latents[items] - _sum_codes(unique[items, :-1], codebooks)
        cost = _measure_distances(residual, codebooks[-1][free[prefix]])
        placed, chosen = linear_sum_assignment(cost)
        unique[np.array(items)[placed], -1] = free[prefix][chosen]


def rank_prefixes(latents: FloatArray, codebooks: Sequence[FloatArray], width: int) -> CodeArray:
    """The code prefixes nearest to each latent, nearest first, by a beam of that width.

    Exact where the width is at least the number of prefixes; otherwise a prefix is missed when one
    of its own prefixes is not among the nearest.

    Shapes:
        latents: (n, d) float32.
        codebooks: the prefix's levels, (K, d) float32 each.
        returns: (n, min(width, all prefixes), levels) int32.
    """
    widest = max(len(book) for book in codebooks)
    step = max(1, _CHUNK_DISTANCES // (width * widest))
    chunks = [
        _rank_chunk(latents[start : start + step], codebooks, width)
        for start in range(0, len(latents), step)
    ]
    return np.concatenate(chunks)


def _rank_chunk(latents: FloatArray, codebooks: Sequence[FloatArray], width: int) -> CodeArray:
    n, d = latents.shape
    residual = latents.astype(np.float64)[:, None]
    beams = np.zeros((n, 1, 0), dtype=np.int32)
    for book in codebooks:
        live = beams.shape[1]
        distances = _measure_distances(residual.reshape(-1, d), book).reshape(n, live * len(book))
        best = _find_smallest(distances, width)
        parent, code = np.divmod(best, len(book))
        kept = np.take_along_axis(beams, parent[:, :, None], axis=1)
        beams = np.concatenate([kept, code[:, :, None].astype(np.int32)], axis=2)
        residual = np.take_along_axis(residual, parent[:, :, None], axis=1) - book[code]
    return beams


def _find_smallest(distances: DistanceArray, count: int) -> IndexArray:
    """The columns of each row's smallest values, smallest first."""
    if count >= distances.shape[1]:
        return np.argsort(distances, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(distances, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(distances, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _describe_moves(
    latents: FloatArray, codes: CodeArray, unique: CodeArray, codebooks: Sequence[FloatArray]
) -> Assignment:
    moved = (codes != unique).any(axis=1)
    added = np.zeros(len(codes))
    before, after = (
        ((latents[moved] - _sum_codes(chosen[moved], codebooks)) ** 2).sum(axis=1)
        for chosen in (codes, unique)
    )
    added[moved] = after - before
    return Assignment(unique, moved, added, tuple(len(book) for book in codebooks))

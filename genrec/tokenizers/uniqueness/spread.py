"""Unique codes by an even spread over the last level.

Owns LC-Rec's uniform semantic mapping as a rule of uniqueness. Knows codes, codebooks and latents;
neither how they were learned nor what the items are.

Source: LC-Rec (Zheng et al. 2024, section 3.2.2) spreads items evenly over the last level's codes
by a Sinkhorn-Knopp plan. Its script that writes item indices first gives each item its nearest
codes; then, for at most 20 rounds, each set of items that share all codes is quantized again as one
batch with the plan on the last level. Such a round does not look at the codes of items outside the
set: it can hit an item that was alone, which then moves in the next round, and after the last round
items may still share codes (identical ones always do, their rows of the plan being equal). With n
items and K codes each code must hold n/K of the mass, so two items of 256 codes are pushed to
where they differ, not to where they are near.

Deviations: all colliding items of a prefix are spread together, once. Only codes that no item alone
in its cell and no taken sequence has are offered, and to n items only the n nearest of them each,
which hold the best distinct choice. The plan is rounded to distinct codes, largest share first, so
the result is unique, or an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from genrec.errors import CapacityError
from genrec.tokenizers.quantizers.sinkhorn import spread_evenly
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray, check_capacity, check_codes
from genrec.tokenizers.uniqueness.cells import Cells, find_cells
from genrec.tokenizers.uniqueness.groups import GroupChunk, LatentReader, walk_groups
from genrec.tokenizers.uniqueness.nearest import DistanceArray
from genrec.types import FloatArray, IndexArray


def spread_unique(
    codes: CodeArray,
    codebooks: Sequence[FloatArray],
    read_latents: LatentReader,
    taken: CodeArray | None = None,
    *,
    epsilon: float,
    iterations: int,
) -> Assignment:
    """Codes in which no two items are alike; items that did not collide keep theirs.

    Any item of a colliding cell may move, and none leaves its prefix.

    Args:
        codes: the quantizer's own codes.
        codebooks: one a level; a latent is near the sum of its codes' rows.
        read_latents: what the quantizer quantizes, asked for colliding items only.
        taken: code sequences that are not to be given out, no two alike.
        epsilon: entropy of the plan.
        iterations: of the plan.

    Shapes:
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32; K may differ.
        taken: (M, L) int32.

    Raises:
        CapacityError: more items than code sequences, or than last codes under one prefix.
        DataError: codes that do not fit the codebooks, or latents that are not finite.
    """
    sizes = tuple(len(book) for book in codebooks)
    taken = check_codes(codes, sizes, taken)
    check_capacity(len(codes), sizes, len(taken))
    cells = find_cells(codes, taken, sizes)
    _check_groups(codes, cells)
    unique, added = codes.copy(), np.zeros(len(codes))
    for chunk in walk_groups(codes, codebooks, cells, read_latents):
        for mine, columns, distances in _stack_groups(chunk):
            # One call for all groups of a shape: most hold two items, and a call costs more.
            plans = spread_evenly(torch.from_numpy(distances), epsilon, iterations)
            last = np.take_along_axis(columns, round_plans(plans.numpy()), axis=1)
            unique[chunk.rows[mine], -1] = last
            added[chunk.rows[mine]] = (
                chunk.distances[mine, last] - chunk.distances[mine, chunk.last[mine]]
            )
    return Assignment(unique, (codes != unique).any(axis=1), added, sizes)


def _check_groups(codes: CodeArray, cells: Cells) -> None:
    """Raise unless each prefix has a last code for each of its items; before any long work."""
    both = np.concatenate([cells.cells, cells.taken]) // cells.n_last
    counts = np.bincount(both, minlength=len(cells.keys))
    worst = int(counts.argmax())
    if counts[worst] > cells.n_last:
        row = int(np.argmax(cells.cells // cells.n_last == worst))
        prefix = ", ".join(str(code) for code in codes[row, :-1].tolist())
        raise CapacityError(
            f"{counts[worst]:,} items have codes that begin with ({prefix}), but the last level "
            f"has {cells.n_last} codes, and the policy sinkhorn moves no item to another prefix: "
            f"use unique: assign, which does, or more codes on the last level"
        )


def _stack_groups(chunk: GroupChunk) -> Iterator[tuple[IndexArray, IndexArray, DistanceArray]]:
    """The g groups with n items and m codes offered: items (g, n), codes (g, m), distances."""
    offered = ~chunk.held
    stays = ~chunk.is_taken
    offered[chunk.group[stays], chunk.last[stays]] = True
    cost = np.where(offered[chunk.group], chunk.distances, np.inf)
    ends = np.flatnonzero(np.diff(chunk.group)) + 1
    by_shape: dict[tuple[int, int], list[tuple[IndexArray, IndexArray]]] = {}
    for mine in np.split(np.arange(len(chunk.rows)), ends):
        nearest = np.argsort(cost[mine], axis=1, kind="stable")[:, : len(mine)]
        columns = np.unique(nearest)
        by_shape.setdefault((len(mine), len(columns)), []).append((mine, columns))
    for groups in by_shape.values():
        rows, codes = (np.stack(parts) for parts in zip(*groups, strict=True))
        yield rows, codes, cost[rows[:, :, None], codes[:, None, :]]


def round_plans(plans: DistanceArray) -> IndexArray:
    """For each plan distinct columns for its rows: again and again the largest share that is left.

    Shapes:
        plans: (g, n, m) with m >= n; logarithms will do.
        returns (g, n) int64.
    """
    left = plans.copy()
    n_plans, n_rows, n_columns = left.shape
    every = np.arange(n_plans)
    chosen = np.empty((n_plans, n_rows), dtype=np.int64)
    for _ in range(n_rows):
        row, column = np.divmod(left.reshape(n_plans, -1).argmax(axis=1), n_columns)
        chosen[every, row] = column
        left[every, row] = -np.inf
        left[every, :, column] = -np.inf
    return chosen

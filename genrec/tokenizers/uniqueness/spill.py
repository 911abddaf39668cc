"""Room under another prefix, for items whose own has none.

Owns the search for the nearest prefix with a free code. Knows neither why an item is without a
place nor what the items are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from genrec.tokenizers.uniqueness.cells import Cells, contain_values, pack_rows
from genrec.tokenizers.uniqueness.nearest import measure_distances, rank_prefixes, sum_codes
from genrec.types import FloatArray, IndexArray

_FIRST_WIDTH = 16
_WIDER = 8


@dataclass(slots=True)
class _Room:
    """One prefix: its codes, the last codes that are free there, and who comes."""

    prefix: NDArray[np.int32]
    free: IndexArray
    arrivals: list[int]


def place_spilled(
    latents: FloatArray, cells: Cells, held: IndexArray, codebooks: Sequence[FloatArray]
) -> NDArray[np.int32]:
    """Codes (s, L) for items without a place, each under the nearest prefix with room.

    Earlier items choose first. Items that come to one prefix are matched to its free codes at the
    least total distance.

    Args:
        latents: of the items without a place.
        cells: how prefixes are numbered.
        held: the cells in use, rising; those of the items without a place are not among them.
        codebooks: one a level.
    """
    rooms = _find_rooms(latents, cells, held, codebooks)
    placed = np.empty((len(latents), len(codebooks)), dtype=np.int32)
    for room in rooms:
        if room.arrivals:
            placed[room.arrivals, :-1] = room.prefix
            residual = latents[room.arrivals] - sum_codes(room.prefix[None], codebooks)
            cost = measure_distances(residual, codebooks[-1][room.free])
            items, chosen = linear_sum_assignment(cost)
            placed[np.array(room.arrivals)[items], -1] = room.free[chosen]
    return placed


def _find_rooms(
    latents: FloatArray, cells: Cells, held: IndexArray, codebooks: Sequence[FloatArray]
) -> list[_Room]:
    """Every prefix that was looked at, with the items that go there."""
    distinct, kind = np.unique(latents, axis=0, return_inverse=True)
    kind = kind.ravel()
    sizes = [len(book) for book in codebooks[:-1]]
    n_prefixes = math.prod(sizes)
    rooms: dict[Any, _Room] = {}
    waiting = list(range(len(latents)))
    width = min(_FIRST_WIDTH, n_prefixes)
    while waiting:
        kinds, local = np.unique(kind[waiting], return_inverse=True)
        ranked = rank_prefixes(distinct[kinds], codebooks[:-1], width)
        keys = pack_rows(ranked.reshape(-1, len(sizes)), sizes).reshape(ranked.shape[:2]).tolist()
        tried = [0] * len(kinds)  # equal items look on where the last one found the prefixes full
        left = []
        for item, row in zip(waiting, local.ravel().tolist(), strict=True):
            while tried[row] < len(keys[row]):
                key = keys[row][tried[row]]
                if key not in rooms:
                    prefix = ranked[row, tried[row]]
                    rooms[key] = _Room(prefix, _find_free(key, cells, held), [])
                if len(rooms[key].arrivals) < len(rooms[key].free):
                    rooms[key].arrivals.append(item)
                    break
                tried[row] += 1
            else:
                left.append(item)
        waiting = left
        assert not waiting or width < n_prefixes, "the capacity check leaves room for every item"
        width = min(width * _WIDER, n_prefixes)
    return list(rooms.values())


def _find_free(key: Any, cells: Cells, held: IndexArray) -> IndexArray:
    """The last codes of a prefix that no cell in use has."""
    every = np.arange(cells.n_last)
    wanted = np.array([key], dtype=cells.keys.dtype)
    if not contain_values(cells.keys, wanted)[0]:
        return every
    cell = int(np.searchsorted(cells.keys, wanted)[0]) * cells.n_last
    return every[~contain_values(held, cell + every)]

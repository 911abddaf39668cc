"""The codebook row nearest to a vector, whatever other vectors it is asked for with.

Owns this one search. Knows no level and no item.

A matrix product rounds a row's result by the shape of the whole product: asked for one by one, half
of 4,000 vectors midway between two rows of a codebook got another code than all at once. So the
product only finds the rows that could be nearest, given how far it can be off; where these are
several, each distance is summed again in float64, by itself, and the first of the smallest wins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.types import FloatArray, IndexArray

ExactReader = Callable[[IndexArray], NDArray[np.float64]]
"""Some of the vectors (n, d), each computed in the same way whatever the others are."""

_UNIT = float(np.finfo(np.float32).eps) / 2
_CHUNK_SCORES = 1 << 22


class NearestCode:
    """A codebook to search, prepared once."""

    def __init__(self, codebook: FloatArray, prices: FloatArray | None = None) -> None:
        """Take over a codebook.

        Args:
            codebook: its rows.
            prices: added to the squared distance to each row, so that rows may win less or more
                than is near to them; None adds nothing.

        Shapes:
            codebook: (K, d) float32.
            prices: (K,) float32.
        """
        self._numbers = np.arange(len(codebook), dtype=np.int32)
        if prices is None:
            # Equal rows would all have to be compared for every vector; only the first can win.
            first = np.unique(codebook, axis=0, return_index=True)[1]
            self._numbers = np.sort(first).astype(np.int32)
            prices = np.zeros(len(codebook), dtype=np.float32)
        # Differences are what counts: around the codebook's own middle they round the least.
        self._middle = codebook.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._exact = codebook[self._numbers]
        self._rows = (self._exact - self._middle).astype(np.float32)
        self._prices = prices[self._numbers].astype(np.float64)
        squares = (self._rows.astype(np.float64) ** 2).sum(axis=1)
        self._longest = float(np.sqrt(squares.max()))
        self._offsets = (squares + self._prices).astype(np.float32)
        self._highest = float(np.abs(self._offsets).max())

    def find_codes(
        self,
        vectors: FloatArray,
        *,
        read_exact: ExactReader | None = None,
        slack: FloatArray | None = None,
    ) -> NDArray[np.int32]:
        """The code of each vector: the nearest row, prices added, and of equally near the first.

        Args:
            vectors: what to find codes for.
            read_exact: the vectors at full accuracy, where `vectors` are themselves rounded.
            slack: how far each of `vectors` can be from these; None is not at all.

        Shapes:
            vectors: (n, d) float32.
            slack: (n,) float32.
            returns: (n,) int32.
        """
        codes = np.empty(len(vectors), dtype=np.int32)
        step = max(1, _CHUNK_SCORES // len(self._rows))
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            loose = None if slack is None else slack[part]
            codes[part] = self._find_chunk(vectors[part], start, read_exact, loose)
        return codes

    def _find_chunk(
        self,
        vectors: FloatArray,
        start: int,
        read_exact: ExactReader | None,
        slack: FloatArray | None,
    ) -> NDArray[np.int32]:
        centred = vectors - self._middle
        lengths = np.sqrt((centred**2).sum(axis=1))
        scores = centred @ self._rows.T
        scores *= -2
        scores += self._offsets
        best = np.argmin(scores, axis=1)
        lowest = scores[np.arange(len(scores)), best]
        # Twice what the product and the sums after it can be off, for the best and for its rival.
        unit = 4 * (vectors.shape[1] + 8) * _UNIT
        reach = unit * (2 * lengths * self._longest + self._highest)
        if slack is not None:
            reach += 8 * slack * self._longest
        near = scores <= (lowest + reach)[:, None]
        contested = np.flatnonzero(near.sum(axis=1) > 1)
        if contested.size:
            exact = self._read(vectors, start, contested, read_exact)
            best[contested] = self._decide(exact, near[contested])
        codes: NDArray[np.int32] = self._numbers[best]
        return codes

    @staticmethod
    def _read(
        vectors: FloatArray, start: int, rows: IndexArray, read_exact: ExactReader | None
    ) -> NDArray[np.float64]:
        return vectors[rows].astype(np.float64) if read_exact is None else read_exact(rows + start)

    def _decide(self, vectors: NDArray[np.float64], near: NDArray[np.bool_]) -> IndexArray:
        """The nearest row of each vector among those marked in `near`, each summed by itself."""
        owner, row = np.nonzero(near)
        distances = np.empty(len(owner))
        step = max(1, _CHUNK_SCORES // vectors.shape[1])
        for start in range(0, len(owner), step):
            part = slice(start, start + step)
            # The rows as they came: around the middle they are rounded, which would undo ties.
            gap = vectors[owner[part]] - self._exact[row[part]]
            distances[part] = (gap**2).sum(axis=1) + self._prices[row[part]]
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        smallest = np.minimum.reduceat(distances, first)
        winners = np.flatnonzero(distances == smallest[owner])
        chosen = np.unique(owner[winners], return_index=True)[1]
        found: IndexArray = row[winners[chosen]]
        return found

"""How far latents are from sums of codebook rows, and which prefixes are nearest.

Owns the distances that uniqueness is paid in: squared and Euclidean, because reconstruction error
adds up in squares. Knows no item.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.types import FloatArray, IndexArray

DistanceArray = NDArray[np.float64]

_CHUNK_DISTANCES = 1 << 24


def sum_codes(codes: NDArray[np.int32], codebooks: Sequence[FloatArray]) -> DistanceArray:
    """The sums of the first levels' codebook rows; as many levels as `codes` has columns."""
    total = np.zeros((len(codes), codebooks[0].shape[1]))
    for level in range(codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total


def measure_distances(residual: DistanceArray | FloatArray, codebook: FloatArray) -> DistanceArray:
    """Squared distances (n, K) from each residual to each code."""
    residual, codebook = residual.astype(np.float64), codebook.astype(np.float64)
    square = (residual**2).sum(1)[:, None] + (codebook**2).sum(1)[None]
    distances: DistanceArray = np.maximum(square - 2 * residual @ codebook.T, 0)
    return distances


def rank_prefixes(
    latents: FloatArray, codebooks: Sequence[FloatArray], width: int
) -> NDArray[np.int32]:
    """The code prefixes nearest to each latent, nearest first, by a beam of that width.

    Exact where the width is at least the number of prefixes; otherwise a prefix is missed when one
    of its own prefixes is not among the nearest.

    Shapes:
        latents: (n, d) float32.
        codebooks: the prefix's levels, (K, d) float32 each.
        returns: (n, min(width, all prefixes), levels) int32.
    """
    widest = max((len(book) for book in codebooks), default=1)
    step = max(1, _CHUNK_DISTANCES // (width * widest))
    chunks = [
        _rank_chunk(latents[start : start + step], codebooks, width)
        for start in range(0, len(latents), step)
    ]
    return np.concatenate(chunks)


def _rank_chunk(
    latents: FloatArray, codebooks: Sequence[FloatArray], width: int
) -> NDArray[np.int32]:
    n, d = latents.shape
    residual = latents.astype(np.float64)[:, None]
    beams = np.zeros((n, 1, 0), dtype=np.int32)
    for book in codebooks:
        live = beams.shape[1]
        distances = measure_distances(residual.reshape(-1, d), book).reshape(n, live * len(book))
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

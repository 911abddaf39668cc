"""The vectors of a training run: held where they fit, else read batch by batch.

Owns where they lie and what is measured of all of them. Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.tokenizers.vectors import VectorRows, read_chunks
from genrec.types import FloatArray, IndexArray

HELD_BYTES = 4 * 2**30
"""Vectors up to this size are held on the device in training; larger ones stay on disk."""
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True)
class Batch:
    """Some items of a training run.

    Shapes:
        rows: (n,) int64, which items these are, on the CPU.
        vectors: (n, D) float32.
        numbers: (n,) int64, what a fusion knows the items by; None without one.
    """

    rows: Tensor
    vectors: Tensor
    numbers: Tensor | None


class TrainingRows:
    """All vectors, to be read by row; the same values wherever they lie."""

    def __init__(
        self, vectors: VectorRows, device: torch.device, numbers: IndexArray | None = None
    ) -> None:
        """Copy the vectors to the device if they are small enough."""
        self.vectors = vectors
        self._device = device
        self._numbers = None if numbers is None else torch.from_numpy(numbers)
        self._held: Tensor | None = None
        if len(vectors) * vectors.shape[1] * 4 <= HELD_BYTES:
            self._held = torch.from_numpy(np.array(vectors[:], dtype=np.float32)).to(device)

    def __len__(self) -> int:
        """N."""
        return len(self.vectors)

    def read(self, rows: Tensor) -> Batch:
        """The items in these rows, (n,) int64 on the CPU; quickest from a disk in rising order."""
        if self._held is not None:
            vectors = self._held[rows.to(self._device)]
        else:
            read = np.asarray(self.vectors[rows.numpy()], dtype=np.float32)
            vectors = torch.from_numpy(read).to(self._device)
        numbers = None if self._numbers is None else self._numbers[rows].to(self._device)
        return Batch(rows, vectors, numbers)


def measure_scale(vectors: VectorRows) -> tuple[FloatArray, float]:
    """The mean vector (D,) and the root of the mean variance; reads the vectors once, in chunks.

    The deviation is 1 where vectors differ by no more than rounding.

    Source: Chan, Golub and LeVeque 1983, for joining the moments of chunks.
    """
    seen, squares = 0, 0.0
    mean = np.zeros(vectors.shape[1])
    for _, chunk in read_chunks(vectors):
        rows = chunk.astype(np.float64)
        shift = rows.mean(axis=0) - mean
        total = seen + len(rows)
        squares += float(((rows - rows.mean(axis=0)) ** 2).sum())
        squares += float((shift**2).sum()) * seen * len(rows) / total
        mean += shift * len(rows) / total
        seen = total
    deviation = float(np.sqrt(squares / (seen * vectors.shape[1])))
    size = float(np.sqrt((mean**2).mean()))
    center: FloatArray = mean.astype(np.float32)
    return center, deviation if deviation > _LEAST_DEVIATION * size else 1.0

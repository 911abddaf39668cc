"""Codebooks and codes for the tests of uniqueness, and plain ways to measure them."""

from __future__ import annotations

import numpy as np

from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray


def make_codebooks(sizes: tuple[int, ...], width: int = 3, seed: int = 0) -> list[FloatArray]:
    generator = np.random.default_rng(seed)
    return [
        (generator.normal(size=(size, width)) / 2**level).astype(np.float32)
        for level, size in enumerate(sizes)
    ]


def encode_greedily(latents: FloatArray, codebooks: list[FloatArray]) -> CodeArray:
    residual = latents.copy()
    codes = np.zeros((len(latents), len(codebooks)), dtype=np.int32)
    for level, book in enumerate(codebooks):
        codes[:, level] = ((residual[:, None] - book[None]) ** 2).sum(2).argmin(1)
        residual -= book[codes[:, level]]
    return codes


def find_alone(codes: CodeArray) -> np.ndarray:
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()] == 1


def measure_total(latents: FloatArray, codes: CodeArray, books: list[FloatArray]) -> float:
    summed = sum(book[codes[:, level]].astype(float) for level, book in enumerate(books))
    return float(((latents - summed) ** 2).sum())

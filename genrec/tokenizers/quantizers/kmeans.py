"""Cluster centres of a sample of vectors, however many vectors there are.

Owns the sample, the k-means call and what becomes of too few distinct vectors. The k-means itself
is scikit-learn's. Knows neither levels nor codes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from genrec.tokenizers.vectors import VectorRows
from genrec.types import FloatArray


@dataclass(frozen=True, slots=True)
class KMeansPlan:
    """How centres are looked for."""

    iterations: int
    seed: int
    restarts: int = 1


def sample_rows(vectors: VectorRows, most: int | None, seed: int) -> FloatArray:
    """At most so many of the rows (n, D), drawn without replacement, in their order; None: all."""
    if most is None or len(vectors) <= most:
        return np.array(vectors[:], dtype=np.float32)
    drawn = np.random.default_rng(seed).choice(len(vectors), size=most, replace=False)
    return np.array(vectors[np.sort(drawn)], dtype=np.float32)


def fit_centres(
    rows: FloatArray, size: int, plan: KMeansPlan, weights: FloatArray | None = None
) -> FloatArray:
    """`size` centres (size, d); with no more distinct rows, these themselves and then zeros."""
    distinct = find_few_distinct(rows, size)
    if distinct is not None:
        centres = np.zeros((size, rows.shape[1]), dtype=np.float32)
        centres[: len(distinct)] = distinct
        return centres
    found = KMeans(size, n_init=plan.restarts, max_iter=plan.iterations, random_state=plan.seed)
    with warnings.catch_warnings():
        # Rows that differ by less than rounding share a centre; its copies are harmless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit(rows, sample_weight=weights)
    fitted: FloatArray = found.cluster_centers_.astype(np.float32)
    return fitted


def find_few_distinct(rows: FloatArray, size: int) -> FloatArray | None:
    """The distinct rows, sorted, where there are no more than `size`; else None, mostly at once."""
    seen: set[bytes] = set()
    for row in rows:
        seen.add((row + 0.0).tobytes())  # -0.0 becomes 0.0
        if len(seen) > size:
            return None
    distinct: FloatArray = np.unique(rows + 0.0, axis=0)
    return distinct


def sum_clusters(
    rows: FloatArray, codes: NDArray[np.int32], size: int
) -> tuple[FloatArray, NDArray[np.int64]]:
    """The sum of each cluster's rows (size, d), and how many there are (size,)."""
    counts = np.bincount(codes, minlength=size)
    ones = np.ones(len(rows), dtype=np.float32)
    members = csr_matrix((ones, (codes, np.arange(len(rows)))), shape=(size, len(rows)))
    sums: FloatArray = members @ rows
    return sums, counts

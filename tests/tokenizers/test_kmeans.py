"""Samples and centres, with enough distinct vectors and without."""

from __future__ import annotations

import numpy as np

from genrec.tokenizers.quantizers.kmeans import (
    KMeansPlan,
    find_few_distinct,
    fit_centres,
    sample_rows,
    sum_clusters,
)
from genrec.tokenizers.vectors import ShardedVectors

from .conftest import plant_clusters

PLAN = KMeansPlan(iterations=20, seed=0)


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    vectors = np.arange(200, dtype=np.float32).reshape(100, 2)
    sharded = ShardedVectors([vectors[:70], vectors[70:]])
    drawn = sample_rows(sharded, 30, seed=1)
    assert drawn.shape == (30, 2)
    assert (np.diff(drawn[:, 0]) > 0).all()
    np.testing.assert_array_equal(drawn, sample_rows(vectors, 30, seed=1))
    assert (drawn != sample_rows(vectors, 30, seed=2)).any()


def test_small_inputs_are_taken_whole_and_copied() -> None:
    vectors = plant_clusters(10)
    for most in (None, 10, 11):
        drawn = sample_rows(vectors, most, seed=0)
        np.testing.assert_array_equal(drawn, vectors)
        assert not np.shares_memory(drawn, vectors)


def test_centres_are_those_of_the_planted_clusters() -> None:
    vectors = plant_clusters(200, n_clusters=4, noise=0.01)
    centres = fit_centres(vectors, 4, PLAN)
    means = np.stack([vectors[number::4].mean(axis=0) for number in range(4)])
    gaps = np.linalg.norm(means[:, None] - centres[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-3


def test_too_few_distinct_rows_are_their_own_centres() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float32)
    centres = fit_centres(rows, 5, PLAN)
    np.testing.assert_array_equal(centres, [[1, 2], [3, 4], [0, 0], [0, 0], [0, 0]])


def test_zero_with_a_sign_is_zero() -> None:
    rows = np.array([[0.0], [-0.0], [1.0]], dtype=np.float32)
    distinct = find_few_distinct(rows, 2)
    assert distinct is not None
    assert distinct.tolist() == [[0.0], [1.0]]
    assert find_few_distinct(rows, 1) is None


def test_rows_that_differ_by_rounding_only_cause_no_warning() -> None:
    rows = (1 + np.arange(40)[:, None] * 1e-7 * np.ones((1, 3))).astype(np.float32)
    centres = fit_centres(rows, 8, PLAN)
    np.testing.assert_allclose(centres, 1, atol=1e-4)


def test_clusters_are_summed_empty_ones_too() -> None:
    rows = np.array([[1, 1], [2, 2], [4, 4]], dtype=np.float32)
    sums, counts = sum_clusters(rows, np.array([2, 0, 2], dtype=np.int32), 4)
    assert sums.tolist() == [[2, 2], [0, 0], [5, 5], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]

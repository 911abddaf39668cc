"""Samples and centres, with enough distinct vectors and without."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_clusters_are_summed_as_numpy_does() -> None:
    rows = plant_clusters(90, dimensions=5)
    codes = np.random.default_rng(0).integers(0, 7, 90).astype(np.int32)
    sums, counts = sum_clusters(rows, codes, 9)
    expected = np.zeros((9, 5))
    np.add.at(expected, codes, rows)
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=9))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_without_variance_are_one_centre(value: float) -> None:
    rows = np.full((12, 3), value, dtype=np.float32)
    centres = fit_centres(rows, 4, PLAN, weights=np.ones(12, dtype=np.float32))
    np.testing.assert_array_equal(centres, [[value] * 3, [0] * 3, [0] * 3, [0] * 3])
    np.testing.assert_array_equal(fit_centres(rows, 1, PLAN), [[value] * 3])


def test_as_many_distinct_rows_as_centres_are_kept_exactly() -> None:
    rows = np.array([[3, 1], [1, 2], [3, 1], [1, 1]], dtype=np.float32)
    np.testing.assert_array_equal(fit_centres(rows, 3, PLAN), [[1, 1], [1, 2], [3, 1]])


def test_rows_that_can_be_split_in_two_ways_are_split_the_same_way_again() -> None:
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    centres = fit_centres(corners, 2, PLAN)
    np.testing.assert_array_equal(centres, fit_centres(corners, 2, PLAN))
    gaps = ((corners[:, None] - centres[None]) ** 2).sum(2).min(1)
    assert gaps.sum() <= 4 / 3 + 1e-6  # no worse than one corner alone and three together


def test_weights_pull_centres() -> None:
    rows = np.array([[0], [1], [10]], dtype=np.float32)
    centres = fit_centres(rows, 2, PLAN, weights=np.array([1, 3, 1], dtype=np.float32))
    np.testing.assert_allclose(np.sort(centres[:, 0]), [0.75, 10], atol=1e-5)

"""Clusters of equal size: full, near the optimum, and described by prices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from genrec.tokenizers.quantizers import balanced
from genrec.tokenizers.quantizers.balanced import assign_evenly, fit_even_centres
from genrec.tokenizers.quantizers.kmeans import KMeansPlan
from genrec.tokenizers.quantizers.nearest_code import NearestCode

from .conftest import plant_clusters

PLAN = KMeansPlan(iterations=10, seed=0)


def share_out(n: int, size: int) -> np.ndarray:
    capacities = np.full(size, n // size)
    capacities[: n % size] += 1
    return capacities


def find_tolerance(distances: np.ndarray) -> float:
    """How far above the least a row's distance plus price can be, as `assign_evenly` says."""
    ordered = np.sort(distances, axis=1)
    gap = (ordered[:, 1] - ordered[:, 0]).mean()
    span = (ordered[:, -1] - ordered[:, 0]).mean()
    return float(0.02 * max(gap, 0.001 * span, 0.02 * ordered[:, 1].mean()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "size"), [(12, 12), (30, 4), (61, 7), (50, 2)])
def test_every_cluster_is_full_at_nearly_the_least_cost(n: int, size: int, seed: int) -> None:
    distances = np.random.default_rng(seed).random((n, size)).astype(np.float32)
    capacities = share_out(n, size)
    members, _ = assign_evenly(distances, capacities)
    np.testing.assert_array_equal(np.bincount(members, minlength=size), capacities)
    places = np.repeat(np.arange(size), capacities)
    rows, best = linear_sum_assignment(distances[:, places])
    least = distances[rows, places[best]].sum()
    cost = distances[np.arange(n), members].sum()
    # What each row may lose, all rows may lose together; so the optimum is no further away.
    assert least - 1e-4 <= cost <= least + n * find_tolerance(distances) + 1e-4


@pytest.mark.parametrize("base", [0, 100])
def test_each_row_is_where_distance_plus_price_is_least(base: float) -> None:
    distances = (base + np.random.default_rng(1).random((200, 8))).astype(np.float32)
    members, prices = assign_evenly(distances, share_out(200, 8))
    costs = distances + prices
    excess = costs[np.arange(200), members] - costs.min(axis=1)
    assert excess.max() <= find_tolerance(distances) * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_prices_alone_tell_where_rows_belong(seed: int) -> None:
    distances = np.random.default_rng(seed).random((200, 8)).astype(np.float32)
    members, prices = assign_evenly(distances, share_out(200, 8))
    assert ((distances + prices).argmin(axis=1) == members).mean() > 0.95
    again, same = assign_evenly(distances, share_out(200, 8))
    np.testing.assert_array_equal(again, members)
    np.testing.assert_array_equal(same, prices)


def test_capacities_need_not_be_equal() -> None:
    distances = np.random.default_rng(3).random((30, 3)).astype(np.float32)
    members, _ = assign_evenly(distances, np.array([1, 20, 9]))
    assert np.bincount(members).tolist() == [1, 20, 9]


def test_earlier_prices_are_a_start_and_stay_untouched() -> None:
    distances = np.random.default_rng(2).random((60, 5)).astype(np.float32)
    capacities = share_out(60, 5)
    _, prices = assign_evenly(distances, capacities)
    before = prices.copy()
    members, _ = assign_evenly(distances, capacities, prices)
    np.testing.assert_array_equal(prices, before)
    np.testing.assert_array_equal(np.bincount(members), capacities)


def test_equal_rows_and_equal_centres_are_shared_out_as_well() -> None:
    for distances in (np.zeros((20, 4)), np.ones((20, 4)), np.tile([0, 0, 5, 5], (20, 1))):
        members, _ = assign_evenly(distances.astype(np.float32), share_out(20, 4))
        assert np.bincount(members).tolist() == [5, 5, 5, 5]


def test_one_cluster_takes_all() -> None:
    members, prices = assign_evenly(np.ones((3, 1), dtype=np.float32), np.array([3]))
    assert members.tolist() == [0, 0, 0]
    assert prices.tolist() == [0.0]
    rows = plant_clusters(9)
    found = fit_even_centres(rows, 1, PLAN)
    np.testing.assert_allclose(found.centres[0], rows.mean(axis=0), atol=1e-5)
    assert (found.members.tolist(), found.prices.tolist()) == ([0] * 9, [0.0])


@pytest.mark.parametrize(("n", "size"), [(40, 8), (43, 8), (9, 8), (17, 3)])
def test_fitted_clusters_differ_by_one_at_most_and_come_out_the_same(n: int, size: int) -> None:
    rows = plant_clusters(n, 3, noise=0.4)
    found, again = fit_even_centres(rows, size, PLAN), fit_even_centres(rows, size, PLAN)
    assert sorted(np.bincount(found.members, minlength=size)) == sorted(share_out(n, size))
    np.testing.assert_array_equal(found.members, again.members)
    np.testing.assert_array_equal(found.centres, again.centres)
    assert abs(found.prices.mean()) < 1e-5


def test_uneven_data_ends_in_clusters_that_differ_by_one_at_most() -> None:
    crowd, rest = plant_clusters(150, 1, noise=0.05), plant_clusters(53, 7, noise=0.5, seed=1)
    rows = np.concatenate([crowd, rest])
    found = fit_even_centres(rows, 8, PLAN)
    sizes = np.bincount(found.members, minlength=8)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_allclose(found.centres[3], rows[found.members == 3].mean(axis=0), atol=0.2)
    # The prices alone put most rows, of a dense crowd too, where they were assigned.
    codes = NearestCode(found.centres, found.prices).find_codes(rows)
    assert (codes == found.members).mean() > 0.75
    plain = NearestCode(found.centres).find_codes(rows)
    assert np.bincount(codes, minlength=8).std() < np.bincount(plain, minlength=8).std()


@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-6])
def test_a_crowd_with_few_outliers_ends_too(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nearly all rows want the same few centres, and the others are a hundred times as far away.
    monkeypatch.setattr(balanced, "_MOST_BIDDINGS", 100)
    crowd, rest = 1 + plant_clusters(291, 1, noise=noise), 3 * plant_clusters(9, 9, seed=1)
    found = fit_even_centres(np.concatenate([crowd, rest]), 16, PLAN)
    sizes = np.bincount(found.members, minlength=16)
    assert sizes.max() - sizes.min() <= 1
    assert np.isfinite(found.prices).all()


def test_rows_left_over_take_the_cheapest_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced, "_MOST_BIDDINGS", 0)
    distances = np.array([[1, 2, 9], [1, 2, 9], [1, 2, 9]], dtype=np.float32)
    members, _ = assign_evenly(distances, np.array([1, 1, 1]))
    assert members.tolist() == [0, 1, 2]

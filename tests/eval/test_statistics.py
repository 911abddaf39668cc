from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from genrec.errors import DataError
from genrec.eval import statistics
from genrec.eval.statistics import bootstrap_interval, compare_pairs


@pytest.fixture(params=["by-value", "by-user"])
def either_way(request, monkeypatch):
    """Both ways of resampling: they must agree."""
    if request.param == "by-user":
        monkeypatch.setattr(statistics, "_MOST_DISTINCT", 1)


def hits(n_users, share, seed=0):
    return (np.random.default_rng(seed).random(n_users) < share).astype(np.float64)


@pytest.mark.usefixtures("either_way")
def test_the_interval_is_that_of_the_normal_law_for_many_users():
    values = hits(4000, 0.2)
    interval = bootstrap_interval(values, n_bootstrap=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        interval = bootstrap_interval(
            hits(200, 0.3, seed), n_bootstrap=300, confidence=0.9, seed=seed
        )
        covered += interval.low <= 0.3 <= interval.high
    assert 0.84 <= covered / 300 <= 0.95


@pytest.mark.usefixtures("either_way")
def test_same_seed_same_interval():
    values = np.random.default_rng(1).random(300)
    first, again, other = (bootstrap_interval(values, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_more_confidence_is_wider():
    values = hits(500, 0.3)
    narrow = bootstrap_interval(values, confidence=0.8)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_users_who_all_agree_leave_no_doubt(value):
    interval = bootstrap_interval(np.full(10, value))
    assert (interval.mean, interval.low, interval.high) == (value, value, value)


def test_a_million_users_take_no_longer_than_their_distinct_values(monkeypatch):
    def refuse(*_):
        raise AssertionError("resampled user by user")

    monkeypatch.setattr(statistics, "_resample_users", refuse)
    monkeypatch.setattr(statistics, "_flip_users", refuse)
    values = hits(1_000_000, 0.05)
    interval = bootstrap_interval(values)
    assert interval.high - interval.low == pytest.approx(4 * 1.96 * 0.218e-3 / 2, rel=0.2)
    assert compare_pairs(values, np.roll(values, 1)).p_value > 0.001


def test_blocks_bound_the_memory(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK_CELLS", 64)
    values = hits(100, 0.3)
    interval = bootstrap_interval(values, n_bootstrap=1000)
    assert interval.low < values.mean() < interval.high
    assert list(statistics._split_rounds(100, 2)) == [32, 32, 32, 4]


def exact_p_value(differences):
    observed = abs(differences.sum())
    signs = np.array(list(product([-1, 1], repeat=len(differences))))
    return (np.abs(signs @ differences) >= observed - 1e-12).mean()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_the_share_of_all_sign_patterns(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.choice([0.0, 0.5, 1.0], size=(2, 11), p=[0.5, 0.2, 0.3])
    found = compare_pairs(first, second, n_permutations=20_000, seed=seed)
    assert found.difference == pytest.approx((first - second).mean())
    assert found.p_value == pytest.approx(exact_p_value(first - second), abs=0.012)


@pytest.mark.usefixtures("either_way")
def test_the_test_is_two_sided_and_turns_with_its_arguments():
    first, second = hits(300, 0.3, 1), hits(300, 0.2, 2)
    forward, backward = compare_pairs(first, second), compare_pairs(second, first)
    assert forward.difference == -backward.difference > 0
    assert forward.p_value == pytest.approx(backward.p_value, abs=0.01)


def test_a_clear_difference_is_found_and_the_p_value_is_never_zero():
    found = compare_pairs(np.ones(200), np.zeros(200), n_permutations=1000)
    assert found.difference == 1.0
    assert found.p_value == pytest.approx(1 / 1001)


def test_equal_systems_do_not_differ():
    values = hits(100, 0.3)
    found = compare_pairs(values, values.copy())
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_under_no_difference_p_values_are_spread_evenly():
    pairs = np.random.default_rng(0).random((300, 2, 100))
    p_values = [compare_pairs(first, second, n_permutations=400).p_value for first, second in pairs]
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_same_seed_same_p_value():
    first, second = hits(200, 0.3, 1), hits(200, 0.25, 2)
    assert compare_pairs(first, second, seed=4) == compare_pairs(first, second, seed=4)


def test_no_users_are_refused():
    empty = np.array([])
    with pytest.raises(DataError, match="no users were evaluated"):
        bootstrap_interval(empty)
    with pytest.raises(DataError, match="no users were evaluated"):
        compare_pairs(empty, empty)


def test_other_users_are_refused():
    with pytest.raises(DataError, match="the same users on both sides, not 2 and 3"):
        compare_pairs(np.zeros(2), np.zeros(3))


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="not a finite number"):
        bootstrap_interval(np.array([0.0, np.nan]))
    with pytest.raises(DataError, match="not a finite number"):
        compare_pairs(np.array([0.0, 1.0]), np.array([0.0, np.inf]))

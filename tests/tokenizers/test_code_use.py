from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from genrec.tokenizers.measures.code_use import (
    count_groups,
    group_prefixes,
    measure_collisions,
    measure_entropy,
    measure_gini,
    measure_perplexity,
    measure_use,
)


def test_perplexity_is_the_number_of_evenly_used_codes() -> None:
    assert measure_perplexity(np.array([5, 5, 5, 0])) == pytest.approx(3.0)
    assert measure_perplexity(np.array([7, 0])) == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [[1, 2, 3, 4], [9, 0, 1], [1]])
def test_entropy_agrees_with_scipy(counts: list[int]) -> None:
    assert measure_entropy(np.array(counts)) == pytest.approx(entropy(counts, base=2))
    assert measure_perplexity(np.array(counts)) == pytest.approx(np.exp(entropy(counts)))


def test_no_items_have_no_entropy_and_no_gini() -> None:
    assert measure_entropy(np.zeros(3, dtype=np.int64)) == 0.0
    assert measure_gini(np.zeros(3, dtype=np.int64)) == 0.0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[int]) -> None:
    values = np.array(counts)
    pairs = np.abs(values[:, None] - values[None]).mean()
    assert measure_gini(values) == pytest.approx(pairs / (2 * values.mean()), abs=1e-12)


def test_every_measure_of_one_level() -> None:
    assert measure_use(np.array([4, 4, 0, 0])) == {
        "codes": 4,
        "used": 2,
        "dead": 2,
        "utilisation": 0.5,
        "perplexity": 2.0,
        "entropy_bits": 1.0,
        "gini": 0.5,
    }


def test_collision_rate_is_the_share_of_lost_items() -> None:
    assert measure_collisions(np.zeros((4, 2), dtype=np.int32)) == 0.75
    assert measure_collisions(np.arange(4, dtype=np.int32)[:, None]) == 0.0


def test_groups_are_those_of_whole_rows(rng: np.random.Generator) -> None:
    codes = rng.integers(3, size=(200, 4)).astype(np.int32)
    for depth in range(1, 5):
        rows, inverse, counts = np.unique(
            codes[:, :depth], axis=0, return_inverse=True, return_counts=True
        )
        group, sizes = group_prefixes(codes, depth)
        assert group.tolist() == inverse.ravel().tolist()
        assert sizes.tolist() == counts.tolist()
    assert sorted(count_groups(codes)) == sorted(counts)
    assert len(rows) == len(counts)


def test_long_codes_are_counted_too(rng: np.random.Generator) -> None:
    codes = rng.integers(65_536, size=(50, 12)).astype(np.int32)
    codes[1] = codes[0]
    assert measure_collisions(codes) == pytest.approx(1 / 50)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

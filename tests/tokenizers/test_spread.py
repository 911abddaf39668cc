"""The rule `sinkhorn`: an even spread over the last level's free codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import CapacityError
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray, assign_unique
from genrec.tokenizers.uniqueness.spread import round_plans, spread_unique
from genrec.types import FloatArray

from .made_codes import encode_greedily, find_alone, make_codebooks, measure_total


def spread(
    latents: FloatArray, raw: CodeArray, books: list[FloatArray], taken: CodeArray | None = None
) -> Assignment:
    return spread_unique(raw, books, lambda rows: latents[rows], taken, epsilon=0.01, iterations=30)


@settings(max_examples=25, deadline=None)
@given(
    n_items=st.integers(1, 12),
    seed=st.integers(0, 1000),
    n_taken=st.integers(0, 3),
)
def test_items_end_on_codes_of_their_own_under_their_prefix(
    n_items: int, seed: int, n_taken: int
) -> None:
    generator = np.random.default_rng(seed)
    books = make_codebooks((2, 16), seed=seed)
    latents = (0.5 * generator.normal(size=(n_items, 3))).astype(np.float32)
    raw = encode_greedily(latents, books)
    taken = np.unique(raw, axis=0)[:n_taken]
    result = spread(latents, raw, books, taken)
    final = np.concatenate([result.codes, taken])
    assert len(np.unique(final, axis=0)) == len(final)
    np.testing.assert_array_equal(result.codes[:, 0], raw[:, 0])
    is_taken = (raw[:, None] == taken[None]).all(2).any(1)
    assert not result.moved[find_alone(raw) & ~is_taken].any()
    gained = measure_total(latents, result.codes, books) - measure_total(latents, raw, books)
    assert result.added_distance.sum() == pytest.approx(gained, abs=1e-4)
    np.testing.assert_array_equal(result.codes, spread(latents, raw, books, taken).codes)
    # No rule can add less than the optimal assignment over the same codes and the same items.
    best = assign_unique(raw, books, lambda rows: latents[rows], taken)
    if (best.codes[:, 0] == raw[:, 0]).all() and not is_taken.any():
        assert result.added_distance.sum() > -1e-6


def test_two_items_take_codes_near_them() -> None:
    books = [np.zeros((1, 1), np.float32), np.arange(16, dtype=np.float32)[:, None]]
    latents = np.array([[3.1], [3.4]], dtype=np.float32)
    raw = encode_greedily(latents, books)
    assert raw[:, 1].tolist() == [3, 3]
    assert sorted(spread(latents, raw, books).codes[:, 1].tolist()) == [3, 4]


def test_identical_items_are_told_apart() -> None:
    books = make_codebooks((1, 8))
    raw = np.tile(np.array([[0, 5]], dtype=np.int32), (8, 1))
    result = spread(np.zeros((8, 3), np.float32), raw, books)
    assert sorted(result.codes[:, 1].tolist()) == list(range(8))
    assert result.moved.sum() == 7


def test_plans_are_rounded_largest_share_first() -> None:
    plans = np.log(np.array([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], [[0.1, 0.2, 0.7], [0, 1, 0]]]) + 1)
    assert round_plans(plans).tolist() == [[1, 0], [2, 1]]


def test_a_full_prefix_is_an_error_that_names_the_ways_out() -> None:
    books = make_codebooks((3, 4))
    raw = np.zeros((5, 2), dtype=np.int32)
    with pytest.raises(
        CapacityError, match=r"5 items .* begin with \(0\).* 4 codes.*unique: assign.*more codes"
    ):
        spread(np.zeros((5, 3), np.float32), raw, books)
    taken = np.array([[0, 1]], dtype=np.int32)
    assert len(spread(np.zeros((3, 3), np.float32), raw[:3], books, taken).codes) == 3
    with pytest.raises(CapacityError, match="5 items"):
        spread(np.zeros((4, 3), np.float32), raw[:4], books, taken)

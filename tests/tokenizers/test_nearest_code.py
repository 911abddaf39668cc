"""The nearest code: right, and the same whatever it is asked for with."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.tokenizers.quantizers import nearest_code
from genrec.tokenizers.quantizers.nearest_code import NearestCode
from genrec.types import FloatArray


def draw(*shape: int, seed: int = 0, shift: float = 0.0) -> FloatArray:
    return (np.random.default_rng(seed).normal(size=shape) + shift).astype(np.float32)


def search_slowly(
    vectors: FloatArray, book: FloatArray, prices: FloatArray | None = None
) -> np.ndarray:
    gaps = vectors[:, None].astype(np.float64) - book[None].astype(np.float64)
    distances = (gaps**2).sum(2)
    return np.argmin(distances + (0 if prices is None else prices.astype(np.float64)), axis=1)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_the_nearest_row_is_found(shift: float) -> None:
    # Far from the origin, a plain float32 product loses the differences in rounding.
    vectors, book = draw(300, 12, shift=shift), draw(20, 12, seed=1, shift=shift)
    codes = NearestCode(book).find_codes(vectors)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, search_slowly(vectors, book))


def test_prices_are_added_to_squared_distances() -> None:
    vectors, book, prices = draw(200, 6), draw(9, 6, seed=1), draw(9, seed=2) * 3
    codes = NearestCode(book, prices).find_codes(vectors)
    np.testing.assert_array_equal(codes, search_slowly(vectors, book, prices))
    assert (codes != search_slowly(vectors, book)).any()


def test_vectors_midway_get_one_code_whatever_the_batch() -> None:
    book = draw(64, 128)
    pairs = np.random.default_rng(3).integers(0, 64, (2, 400))
    midway = ((book[pairs[0]] + book[pairs[1]]) / 2).astype(np.float32)
    search = NearestCode(book)
    together = search.find_codes(midway)
    for size in (1, 3, 16, 100):
        parts = [search.find_codes(midway[row : row + size]) for row in range(0, 400, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_of_equal_rows_the_first_wins() -> None:
    book = np.repeat(draw(3, 4), 4, axis=0)[[11, 0, 4, 1, 5, 8, 2]]
    codes = NearestCode(book).find_codes(book)
    np.testing.assert_array_equal(codes, [0, 1, 2, 1, 2, 0, 1])


def test_of_equally_near_rows_the_first_wins() -> None:
    book = np.array([[5, 5], [1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    assert NearestCode(book).find_codes(np.zeros((1, 2), dtype=np.float32)).tolist() == [1]
    # With prices, equal rows are kept apart: the cheaper one wins.
    prices = np.array([0, 3, 2, 3], dtype=np.float32)
    assert NearestCode(book, prices).find_codes(np.zeros((1, 2), dtype=np.float32)).tolist() == [2]


def test_one_row_takes_all_and_no_vector_is_fine() -> None:
    search = NearestCode(draw(1, 5))
    assert search.find_codes(draw(7, 5)).tolist() == [0] * 7
    assert search.find_codes(draw(0, 5)).shape == (0,)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, book = draw(90, 6), draw(30, 6, seed=1)
    whole = NearestCode(book).find_codes(vectors)
    monkeypatch.setattr(nearest_code, "_CHUNK_SCORES", 70)
    np.testing.assert_array_equal(NearestCode(book).find_codes(vectors), whole)


def test_rounded_vectors_are_read_again_where_it_matters() -> None:
    book = np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    exact = np.array([[1.0 - 1e-9, 0.0], [1.0 + 1e-9, 0.0], [1.9, 0.0]])
    asked: list[int] = []

    def read_exact(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return exact[rows]

    rounded = exact.astype(np.float32)
    slack = np.full(3, 1e-6, dtype=np.float32)
    codes = NearestCode(book).find_codes(rounded, read_exact=read_exact, slack=slack)
    assert codes.tolist() == [0, 1, 1]
    assert asked == [0, 1]  # the third is far from the middle, however it was rounded


def test_rounded_vectors_are_read_by_their_own_number_in_every_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest_code, "_CHUNK_SCORES", 4)
    book = np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    exact = np.array([[1 + sign * 1e-9, 0.0] for sign in (1, -1, 1, 1, -1, -1, 1)])
    slack = np.full(7, 1e-6, dtype=np.float32)
    codes = NearestCode(book).find_codes(
        exact.astype(np.float32), read_exact=lambda rows: exact[rows], slack=slack
    )
    assert codes.tolist() == [1, 0, 1, 1, 0, 0, 1]


def test_slack_is_each_vectors_own() -> None:
    book = np.array([[0.0], [2.0]], dtype=np.float32)
    truth = np.array([[0.9], [0.9]])
    rounded = np.array([[1.1], [1.1]], dtype=np.float32)
    slack = np.array([0.0, 0.2], dtype=np.float32)
    codes = NearestCode(book).find_codes(rounded, read_exact=lambda rows: truth[rows], slack=slack)
    assert codes.tolist() == [1, 0]


@pytest.mark.parametrize("priced", [False, True])
def test_exact_ties_go_to_the_first_wherever_the_middle_is(priced: bool) -> None:
    # Whole numbers and halves have exact distances, but the middle of the rows may have none.
    for seed in range(40):
        random = np.random.default_rng(seed)
        size, width = random.integers(2, 12), random.integers(1, 5)
        book = random.integers(-4, 5, (size, width)).astype(np.float32)
        vectors = (random.integers(-8, 9, (50, width)) / 2).astype(np.float32)
        prices = random.integers(0, 4, size).astype(np.float32) if priced else None
        codes = NearestCode(book, prices).find_codes(vectors)
        np.testing.assert_array_equal(codes, search_slowly(vectors, book, prices))


def test_prices_do_not_make_codes_depend_on_the_batch() -> None:
    book = draw(16, 64)
    search = NearestCode(book, np.full(16, 0.25, dtype=np.float32))
    pairs = np.random.default_rng(4).integers(0, 16, (2, 100))
    midway = ((book[pairs[0]] + book[pairs[1]]) / 2).astype(np.float32)
    single = [search.find_codes(midway[row : row + 1]) for row in range(100)]
    np.testing.assert_array_equal(np.concatenate(single), search.find_codes(midway))


def test_zero_with_a_sign_is_the_same_row() -> None:
    book = np.array([[1.0, 0.0], [1.0, -0.0], [0.0, 5.0]], dtype=np.float32)
    assert NearestCode(book).find_codes(book).tolist() == [0, 0, 2]

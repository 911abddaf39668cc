from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec.errors import CapacityError, DataError
from genrec.tokenizers.assign import (
    Assignment,
    CodeArray,
    assign_unique,
    check_capacity,
    rank_prefixes,
)
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


def check_rules(latents: FloatArray, raw: CodeArray, books: list[FloatArray]) -> Assignment:
    """Unique; who was alone stays; one of each colliding cell stays."""
    result = assign_unique(latents, raw, books)
    assert len(np.unique(result.codes, axis=0)) == len(raw)
    assert not result.moved[find_alone(raw)].any()
    for cell in np.unique(raw, axis=0):
        assert (~result.moved[(raw == cell).all(1)]).sum() == 1
    np.testing.assert_array_equal(result.moved, (raw != result.codes).any(1))
    gained = measure_total(latents, result.codes, books) - measure_total(latents, raw, books)
    assert result.added_distance.sum() == pytest.approx(gained, abs=1e-4, rel=1e-4)
    assert (result.added_distance[~result.moved] == 0).all()
    return result


@pytest.mark.parametrize("seed", range(12))
def test_one_group_is_separated_at_least_total_distance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    books = make_codebooks((1, 5), seed=seed)
    # Close together, so that several share a code.
    latents = (books[0][0] + 0.3 * generator.normal(size=(5, 3))).astype(np.float32)
    raw = encode_greedily(latents, books)
    result = check_rules(latents, raw, books)
    alone = find_alone(raw)
    held = {int(code) for code in raw[:, 1]}
    best = np.inf
    for order in itertools.permutations(range(5)):
        codes = np.stack([np.zeros(5), order], axis=1).astype(np.int32)
        stays = (codes == raw).all(1)
        kept = {int(code) for code in raw[stays, 1]}
        if stays[alone].all() and kept == held:
            best = min(best, measure_total(latents, codes, books))
    assert measure_total(latents, result.codes, books) == pytest.approx(best, rel=1e-6)


def test_codes_without_collisions_are_left_alone() -> None:
    books = make_codebooks((4, 4))
    raw = np.array([[0, 0], [0, 1], [3, 3]], dtype=np.int32)
    result = assign_unique(np.zeros((3, 3), dtype=np.float32), raw, books)
    np.testing.assert_array_equal(result.codes, raw)
    assert not result.moved.any()
    assert result.added_distance.sum() == 0


def test_a_full_group_spills_its_worst_placed_items_to_the_nearest_room() -> None:
    books = [
        np.array([[0.0], [10.0], [100.0]], dtype=np.float32),
        np.array([[0.0], [1.0]], dtype=np.float32),
    ]
    latents = np.array([[0.0], [0.1], [4.0], [0.2]], dtype=np.float32)
    raw = np.array([[0, 0], [0, 0], [0, 1], [0, 0]], dtype=np.int32)
    result = check_rules(latents, raw, books)
    # The item at 4.0 is alone on (0, 1) and stays; 0.0 keeps (0, 0); the others go on to prefix 1.
    np.testing.assert_array_equal(result.codes[[0, 2]], raw[[0, 2]])
    assert result.codes[[1, 3], 0].tolist() == [1, 1]


def test_identical_items_fill_the_whole_space() -> None:
    books = make_codebooks((3, 4, 5))
    latents = np.tile(np.array([[0.3, -0.2, 0.1]], dtype=np.float32), (60, 1))
    check_rules(latents, encode_greedily(latents, books), books)


def test_one_level_is_separated_too() -> None:
    books = make_codebooks((6,))
    latents = np.zeros((6, 3), dtype=np.float32)
    result = check_rules(latents, encode_greedily(latents, books), books)
    assert sorted(result.codes[:, 0].tolist()) == list(range(6))


@settings(max_examples=60, deadline=None)
@given(
    latents=arrays(
        np.float32,
        st.tuples(st.integers(1, 24), st.just(2)),
        elements=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]),
    ),
    sizes=st.sampled_from([(2, 3, 4), (24,), (4, 6), (1, 1, 24), (5, 5), (24, 1)]),
    seed=st.integers(0, 5),
)
def test_rules_hold_whatever_the_items(
    latents: FloatArray, sizes: tuple[int, ...], seed: int
) -> None:
    books = make_codebooks(sizes, width=2, seed=seed)
    raw = encode_greedily(latents, books)
    first = check_rules(latents, raw, books)
    again = assign_unique(latents, raw, books)
    np.testing.assert_array_equal(first.codes, again.codes)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), sizes=st.sampled_from([(3, 4), (2, 2, 4)]))
def test_rules_hold_for_codes_that_are_not_nearest(
    data: st.DataObject, sizes: tuple[int, ...]
) -> None:
    n_items = data.draw(st.integers(1, 12))
    rows = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    raw = np.array(data.draw(st.lists(rows, min_size=n_items, max_size=n_items)), dtype=np.int32)
    latents = np.random.default_rng(n_items).normal(size=(n_items, 3)).astype(np.float32)
    check_rules(latents, raw, make_codebooks(sizes))


def test_a_beam_as_wide_as_the_space_ranks_exactly() -> None:
    books = make_codebooks((4, 5))
    latents = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    ranked = rank_prefixes(latents, books, 20)
    pairs = np.array(list(itertools.product(range(4), range(5))))
    for latent, found in zip(latents, ranked, strict=True):
        distances = ((latent - books[0][pairs[:, 0]] - books[1][pairs[:, 1]]) ** 2).sum(1)
        np.testing.assert_array_equal(found, pairs[np.argsort(distances)])
    assert rank_prefixes(latents, books, 3).shape == (7, 3, 2)


def test_more_items_than_codes_are_refused_with_both_numbers() -> None:
    check_capacity(64, (4, 4, 4))
    with pytest.raises(CapacityError, match=r"65 items .* 4 x 4 x 4 make 64; add a level or more"):
        check_capacity(65, (4, 4, 4))
    books = make_codebooks((2, 2))
    with pytest.raises(CapacityError, match="5 items cannot have unique codes"):
        assign_unique(np.zeros((5, 3), np.float32), np.zeros((5, 2), np.int32), books)


def test_input_that_does_not_fit_is_refused() -> None:
    books = make_codebooks((2, 2))
    latents, codes = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int32)
    with pytest.raises(DataError, match="do not fit 2 codebooks of width 3"):
        assign_unique(latents[:, :2], codes, books)
    with pytest.raises(DataError, match=r"outside the codebooks, whose sizes are \[2, 2\]"):
        assign_unique(latents, codes + 2, books)
    with pytest.raises(DataError, match="latents hold NaN or infinity"):
        assign_unique(latents * np.nan, codes, books)


def test_many_collisions_are_separated_in_seconds() -> None:
    generator = np.random.default_rng(0)
    books = make_codebooks((64, 64, 64), width=8)
    latents = (0.15 * generator.normal(size=(3000, 8))).astype(np.float32)
    raw = encode_greedily(latents, books)
    assert len(np.unique(raw, axis=0)) < 1000
    started = time.monotonic()
    result = assign_unique(latents, raw, books)
    assert time.monotonic() - started < 20
    assert len(np.unique(result.codes, axis=0)) == 3000

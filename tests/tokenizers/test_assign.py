"""The default rule of uniqueness: against brute force, as properties, and at size."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec.errors import CapacityError, DataError
from genrec.tokenizers.uniqueness.assign import (
    Assignment,
    CodeArray,
    assign_unique,
    check_capacity,
    match_group,
)
from genrec.tokenizers.uniqueness.cells import find_cells
from genrec.tokenizers.uniqueness.groups import walk_groups
from genrec.tokenizers.uniqueness.nearest import rank_prefixes
from genrec.types import FloatArray, IndexArray

from .made_codes import encode_greedily, find_alone, make_codebooks, measure_total


def assign(
    latents: FloatArray,
    codes: CodeArray,
    books: list[FloatArray],
    taken: Sequence[Sequence[int]] = (),
) -> Assignment:
    table = np.array(taken, dtype=np.int32).reshape(-1, len(books))
    return assign_unique(codes, books, lambda rows: latents[rows], table)


def check_rules(
    latents: FloatArray,
    raw: CodeArray,
    books: list[FloatArray],
    taken: Sequence[tuple[int, ...]] = (),
) -> Assignment:
    """Unique, nothing taken; who was alone stays; one of each colliding cell stays if it may."""
    result = assign(latents, raw, books, taken)
    final = [*map(tuple, result.codes.tolist()), *taken]
    assert len(set(final)) == len(final)
    is_taken = np.array([tuple(row) in set(taken) for row in raw.tolist()], dtype=bool)
    assert not result.moved[find_alone(raw) & ~is_taken].any()
    assert result.moved[is_taken].all()
    for cell in np.unique(raw, axis=0):
        stays = (~result.moved[(raw == cell).all(1)]).sum()
        assert stays == (0 if tuple(cell.tolist()) in set(taken) else 1)
    np.testing.assert_array_equal(result.moved, (raw != result.codes).any(1))
    gained = measure_total(latents, result.codes, books) - measure_total(latents, raw, books)
    assert result.added_distance.sum() == pytest.approx(gained, abs=1e-4, rel=1e-4)
    assert (result.added_distance[~result.moved] == 0).all()
    assert result.codebook_sizes == tuple(len(book) for book in books)
    return result


def list_assignments(raw: CodeArray, n_codes: int, taken: set[int]) -> Iterator[CodeArray]:
    """Every way to give one group's items distinct last codes under the rules."""
    alone = find_alone(raw) & ~np.isin(raw[:, 1], list(taken))
    for order in itertools.permutations(set(range(n_codes)) - taken, len(raw)):
        codes = np.stack([np.zeros(len(raw)), order], axis=1).astype(np.int32)
        stays = (codes == raw).all(1)
        kept = {int(code) for code in raw[stays, 1]}
        if stays[alone].all() and kept == set(raw[:, 1].tolist()) - taken:
            yield codes


@pytest.mark.parametrize("taken", [(), (0,), (1, 3)])
@pytest.mark.parametrize("seed", range(10))
def test_one_group_is_separated_at_least_total_distance(seed: int, taken: tuple[int, ...]) -> None:
    generator = np.random.default_rng(seed)
    books = make_codebooks((1, 6), seed=seed)
    # Close together, so that several share a code.
    latents = (books[0][0] + 0.3 * generator.normal(size=(4, 3))).astype(np.float32)
    raw = encode_greedily(latents, books)
    result = check_rules(latents, raw, books, [(0, code) for code in taken])
    totals = [measure_total(latents, codes, books) for codes in list_assignments(raw, 6, {*taken})]
    assert measure_total(latents, result.codes, books) == pytest.approx(min(totals), rel=1e-6)


def test_codes_without_collisions_are_left_alone() -> None:
    books = make_codebooks((4, 4))
    raw = np.array([[0, 0], [0, 1], [3, 3]], dtype=np.int32)

    def refuse(rows: IndexArray) -> FloatArray:
        raise AssertionError("no latent is needed")

    result = assign_unique(raw, books, refuse)
    np.testing.assert_array_equal(result.codes, raw)
    assert not result.moved.any()
    assert result.added_distance.sum() == 0


def test_an_item_on_a_taken_code_moves_to_the_nearest_free_one() -> None:
    books = [np.zeros((1, 1), np.float32), np.array([[0], [1], [2], [9]], np.float32)]
    raw = np.array([[0, 0], [0, 1]], dtype=np.int32)
    latents = np.array([[0.1], [1.0]], dtype=np.float32)
    result = check_rules(latents, raw, books, [(0, 0)])
    assert result.codes.tolist() == [[0, 2], [0, 1]]
    assert result.added_distance == pytest.approx([1.9**2 - 0.1**2, 0.0])


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
    # Half of prefix 1 is taken: the second item has to go on to prefix 2.
    result = check_rules(latents, raw, books, [(1, 0)])
    assert result.codes[[1, 3]].tolist() == [[1, 1], [2, 0]]


def test_a_group_whose_codes_are_all_taken_spills_everyone() -> None:
    books = make_codebooks((3, 2))
    raw = np.array([[0, 0], [0, 0]], dtype=np.int32)
    result = check_rules(np.zeros((2, 3), np.float32), raw, books, [(0, 0), (0, 1)])
    assert (result.codes[:, 0] != 0).all()


@pytest.mark.parametrize("sizes", [(3, 4, 5), (60,), (60, 1)])
def test_identical_items_fill_the_whole_space(sizes: tuple[int, ...]) -> None:
    books = make_codebooks(sizes)
    latents = np.tile(np.array([[0.3, -0.2, 0.1]], dtype=np.float32), (60, 1))
    check_rules(latents, encode_greedily(latents, books), books)


def test_a_code_space_beyond_64_bits_is_separated_too() -> None:
    same = [np.zeros((2**13, 3), np.float32)] * 5
    books, raw = [*same, *make_codebooks((4, 3))], np.zeros((9, 7), dtype=np.int32)
    latents = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    cells = find_cells(raw, raw[:0], [len(book) for book in books])
    assert cells.keys.dtype.kind == "S"
    assert cells.cells.tolist() == [0] * 9
    result = check_rules(latents, raw, books)
    assert (result.codes[:, :6] != 0).any()


@settings(max_examples=60, deadline=None)
@given(
    latents=arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.just(2)),
        elements=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]),
    ),
    sizes=st.sampled_from([(2, 3, 4), (24,), (4, 6), (1, 1, 24), (5, 5), (24, 1)]),
    seed=st.integers(0, 5),
    n_taken=st.integers(0, 4),
)
def test_rules_hold_whatever_the_items(
    latents: FloatArray, sizes: tuple[int, ...], seed: int, n_taken: int
) -> None:
    books = make_codebooks(sizes, width=2, seed=seed)
    raw = encode_greedily(latents, books)
    # Where the items want to be, so that taken codes matter.
    wanted = [*dict.fromkeys(map(tuple, raw.tolist()))][:n_taken]
    first = check_rules(latents, raw, books, wanted)
    again = check_rules(latents, raw, books, wanted)
    np.testing.assert_array_equal(first.codes, again.codes)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), sizes=st.sampled_from([(3, 4), (2, 2, 4)]))
def test_rules_hold_for_codes_that_are_not_nearest(
    data: st.DataObject, sizes: tuple[int, ...]
) -> None:
    n_items = data.draw(st.integers(1, 10))
    rows = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    raw = np.array(data.draw(st.lists(rows, min_size=n_items, max_size=n_items)), dtype=np.int32)
    taken = data.draw(st.lists(rows, max_size=2, unique=True))
    latents = np.random.default_rng(n_items).normal(size=(n_items, 3)).astype(np.float32)
    check_rules(latents, raw, make_codebooks(sizes), taken)


@settings(max_examples=40, deadline=None)
@given(
    n_items=st.integers(2, 58),
    seed=st.integers(0, 10_000),
    n_taken=st.integers(0, 6),
)
def test_the_shortcut_gives_what_the_full_search_gives(
    n_items: int, seed: int, n_taken: int
) -> None:
    generator = np.random.default_rng(seed)
    books = make_codebooks((4, 16), seed=seed)
    latents = generator.normal(size=(n_items, 3)).astype(np.float32)
    raw = encode_greedily(latents, books)
    taken = np.unique(raw, axis=0)[:n_taken]
    result = assign_unique(raw, books, lambda rows: latents[rows], taken)
    cells = find_cells(raw, taken, (4, 16))
    for chunk in walk_groups(raw, books, cells, lambda rows: latents[rows]):
        for group in range(len(chunk.held)):
            full = match_group(chunk, group)
            if not len(full.unplaced):  # spilled items may come to a group that had room
                np.testing.assert_array_equal(result.codes[full.rows, -1], full.last)
                np.testing.assert_allclose(result.added_distance[full.rows], full.added)


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
    books, raw = make_codebooks((2, 2)), np.zeros((5, 2), np.int32)
    with pytest.raises(CapacityError, match="5 items cannot have unique codes"):
        assign(np.zeros((5, 3), np.float32), raw, books)
    with pytest.raises(CapacityError, match=r"3 items .* make 4, of which 2 are taken"):
        assign(np.zeros((3, 3), np.float32), raw[:3], books, [(0, 0), (1, 1)])


def test_input_that_does_not_fit_is_refused() -> None:
    books = make_codebooks((2, 2))
    latents, codes = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int32)
    with pytest.raises(DataError, match=r"codes \(2, 1\) do not fit 2 codebooks"):
        assign(latents, codes[:, :1], books)
    with pytest.raises(DataError, match=r"codes lie outside the codebooks, whose .* \[2, 2\]"):
        assign(latents, codes + 2, books)
    with pytest.raises(DataError, match="taken codes lie outside"):
        assign(latents, codes, books, [(0, 2)])
    with pytest.raises(DataError, match=r"latents \(2, 2\) of 2 items do not fit .* width 3"):
        assign(latents[:, :2], codes, books)
    with pytest.raises(DataError, match="latents hold NaN or infinity"):
        assign(latents * np.nan, codes, books)


def test_only_colliding_items_are_read_and_in_batches() -> None:
    books = make_codebooks((1, 64), width=2)
    raw = np.column_stack([np.zeros(20_000), np.zeros(20_000)]).astype(np.int32)
    raw[:10, 1] = np.arange(1, 11)
    asked: list[IndexArray] = []

    def read(rows: IndexArray) -> FloatArray:
        asked.append(rows)
        return np.zeros((len(rows), 2), np.float32)

    with pytest.raises(CapacityError):
        assign_unique(raw, books, read)
    assert not asked
    books = [make_codebooks((400,), width=2)[0], books[1]]
    result = assign_unique(raw, books, read)
    assert len(np.unique(result.codes, axis=0)) == 20_000
    assert max(len(rows) for rows in asked) <= 8192
    assert min(int(rows.min()) for rows in asked) == 10


def test_many_collisions_are_separated_in_seconds() -> None:
    generator = np.random.default_rng(0)
    books = make_codebooks((64, 64, 64), width=8)
    latents = (0.15 * generator.normal(size=(3000, 8))).astype(np.float32)
    raw = encode_greedily(latents, books)
    assert len(np.unique(raw, axis=0)) < 1000
    started = time.monotonic()
    result = assign(latents, raw, books)
    assert time.monotonic() - started < 20
    assert len(np.unique(result.codes, axis=0)) == 3000


@pytest.mark.slow
def test_a_million_items_are_unique_within_a_minute() -> None:
    generator = np.random.default_rng(0)
    books = [(generator.normal(size=(256, 8)) / 4**level).astype(np.float32) for level in range(4)]
    raw = np.concatenate(
        [
            generator.integers(0, 256, (850_000, 4)),
            np.repeat(generator.integers(0, 256, (75_000, 4)), 2, axis=0),
        ]
    ).astype(np.int32)
    latents = sum(book[raw[:, level]] for level, book in enumerate(books))
    latents = (latents + 0.01 * generator.normal(size=latents.shape)).astype(np.float32)
    started = time.monotonic()
    result = assign(latents, raw, books)
    assert time.monotonic() - started < 60
    assert 70_000 < result.moved.sum() < 250_000
    keys = result.codes.astype(np.int64) @ 256 ** np.arange(4)
    assert len(np.unique(keys)) == 1_000_000

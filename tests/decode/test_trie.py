"""The trie against a dictionary of prefixes."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genrec.decode.trie import Trie
from genrec.errors import DataError, DecodeError, UnknownItemError
from tests.decode.made_catalogues import catalogues


def next_codes(table):
    """The plain way: prefix -> set of next codes."""
    following = defaultdict(set)
    for row in table.tolist():
        for level, code in enumerate(row):
            following[tuple(row[:level])].add(code)
    return following


@settings(max_examples=60, deadline=None)
@given(catalogues())
def test_children_are_those_of_a_dictionary(table):
    trie, following = Trie.from_codes(table), next_codes(table)
    assert (trie.n_items, trie.n_levels) == table.shape
    for level in range(trie.n_levels):
        prefixes = [prefix for prefix in following if len(prefix) == level]
        prefix_table = np.array(prefixes, dtype=np.int64).reshape(len(prefixes), level)
        found = trie.children(prefix_table)
        for row, prefix in enumerate(prefixes):
            assert found.code[found.parent_row == row].tolist() == sorted(following[prefix])
        extended = np.column_stack([prefix_table[found.parent_row], found.code])
        np.testing.assert_array_equal(trie.find_nodes(extended), found.node)


@settings(max_examples=40, deadline=None)
@given(catalogues())
def test_a_leaf_gives_back_its_item(table):
    trie = Trie.from_codes(table)
    leaves = trie.find_nodes(table)
    np.testing.assert_array_equal(trie.items(leaves), np.arange(len(table)))
    np.testing.assert_array_equal(trie.leaves, leaves)


@settings(max_examples=40, deadline=None)
@given(catalogues())
def test_an_items_leaf_lies_under_its_prefixes_and_no_other(table):
    trie = Trie.from_codes(table)
    for level in range(trie.n_levels + 1):
        nodes = np.arange(trie.level_sizes[level])
        first, end = trie.leaf_ranges(level, nodes)
        own = trie.find_nodes(table[:, :level])
        under = (trie.leaves[:, None] >= first) & (trie.leaves[:, None] < end)
        np.testing.assert_array_equal(under, own[:, None] == nodes)


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.data())
def test_unknown_prefixes_are_errors(table, data):
    trie = Trie.from_codes(table)
    length = data.draw(st.integers(1, trie.n_levels))
    code = st.integers(-2, int(table.max()) + 2)
    prefix = data.draw(st.tuples(*[code] * length))
    if prefix in {tuple(row) for row in table[:, :length].tolist()}:
        assert trie.find_nodes([prefix]).shape == (1,)
    else:
        with pytest.raises(DecodeError, match="no item's codes begin with"):
            trie.find_nodes([table[0, :length], prefix])


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.int32, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(0, 4)))
def test_shared_codes_are_found_whenever_there_are_any(table):
    if len(np.unique(table, axis=0)) == len(table):
        assert Trie.from_codes(table).n_items == len(table)
    else:
        with pytest.raises(DataError, match="every item needs a code sequence of its own"):
            Trie.from_codes(table)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_any_integer_type_gives_the_same_trie(dtype):
    table = np.random.default_rng(0).permutation(np.argwhere(np.ones((5, 4, 3))))
    trie, other = Trie.from_codes(table), Trie.from_codes(table.astype(dtype))
    np.testing.assert_array_equal(trie.order, other.order)
    assert trie.level_sizes == other.level_sizes == (1, 5, 20, 60)
    assert trie.code_counts == (5, 4, 3)


def test_shared_codes_are_all_named():
    with pytest.raises(DataError) as error:
        Trie.from_codes([[1, 2], [3, 4], [1, 2], [0, 0], [3, 4], [1, 2]])
    assert "2 problems" in str(error.value)
    assert "items 0, 2, 5 share codes (1, 2)" in str(error.value)
    assert "items 1, 4 share codes (3, 4)" in str(error.value)


def test_shared_codes_are_named_where_keys_do_not_fit_64_bits():
    big = 2**40
    with pytest.raises(DataError, match=rf"items 0, 2 share codes \({big}, {big}\)"):
        Trie.from_codes([[big, big], [big, 0], [big, big]])


def test_negative_codes_are_all_named():
    with pytest.raises(DataError) as error:
        Trie.from_codes([[1, 2], [-1, 4], [5, -6]])
    assert "codes must be 0 or more: 2 problems" in str(error.value)
    assert "item 1 has codes (-1, 4)" in str(error.value)
    assert "item 2 has codes (5, -6)" in str(error.value)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3,), (2, 2, 2)])
def test_codes_must_be_a_table_with_items(shape):
    with pytest.raises(DataError, match="make no trie; give"):
        Trie.from_codes(np.zeros(shape, dtype=np.int64))


def test_codes_must_be_integers():
    with pytest.raises(DataError, match="codes are float64; they must be integers"):
        Trie.from_codes(np.zeros((3, 2)))


def test_a_complete_sequence_has_no_extension():
    trie = Trie.from_codes([[0, 1], [1, 0]])
    with pytest.raises(DecodeError, match="a prefix of 2 codes has no extension"):
        trie.children([[0, 1]])
    with pytest.raises(DecodeError, match="a prefix of -1 codes has no extension"):
        trie.expand(-1, np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("node", [-1, 2])
def test_unknown_nodes_are_errors(node):
    trie = Trie.from_codes([[0, 1], [1, 0]])
    with pytest.raises(DecodeError, match=rf"node {node} does not exist on level 1, which has 2"):
        trie.expand(1, np.array([0, node]))


def test_prefixes_must_be_a_table_no_longer_than_a_sequence():
    trie = Trie.from_codes([[0, 1], [1, 0]])
    for prefixes in ([0, 1], [[0, 1, 0]]):
        with pytest.raises(DecodeError, match="do not fit; give"):
            trie.find_nodes(prefixes)


def test_no_nodes_have_no_children():
    found = Trie.from_codes([[0, 1], [1, 0]]).expand(0, np.empty(0, dtype=np.int64))
    assert found.parent_row.size == found.node.size == found.code.size == 0


def test_memory_is_a_few_bytes_an_item():
    codes = np.unique(np.random.default_rng(0).integers(0, 256, (200_000, 4)), axis=0)
    trie = Trie.from_codes(codes)
    assert trie.n_bytes - trie.order.nbytes < 8 * trie.n_items
    assert trie.order.nbytes == 4 * trie.n_items


def check_same(trie, other):
    """Equal arrays of equal types."""
    for name in ("order", "codes", "first_child"):
        found, wanted = getattr(trie, name), getattr(other, name)
        if name == "order":
            found, wanted = (found,), (wanted,)
        assert [array.dtype for array in found] == [array.dtype for array in wanted]
        for left, right in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(left, right)


@settings(max_examples=80, deadline=None)
@given(catalogues(), st.data())
def test_inserting_gives_the_trie_of_all_codes(table, data):
    n_old = data.draw(st.integers(1, len(table)))
    old = Trie.from_codes(table[:n_old])
    before = [array.copy() for array in (*old.codes, *old.first_child)]
    if n_old == len(table):
        return
    check_same(old.insert(table[n_old:]), Trie.from_codes(table))
    for left, right in zip(before, (*old.codes, *old.first_child), strict=True):
        np.testing.assert_array_equal(left, right)


@settings(max_examples=80, deadline=None)
@given(catalogues(), st.data())
def test_removing_gives_the_trie_of_what_is_left(table, data):
    items = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=len(table) - 1))
    trie = Trie.from_codes(table)
    check_same(trie.remove(items), Trie.from_codes(np.delete(table, items, axis=0)))


def test_what_was_inserted_can_be_removed_again():
    table = np.random.default_rng(0).permutation(np.argwhere(np.ones((9, 8, 7))))
    trie = Trie.from_codes(table[:400])
    check_same(trie.insert(table[400:]).remove(np.arange(400, len(table))), trie)


def test_codes_that_an_item_has_cannot_be_inserted():
    trie = Trie.from_codes([[0, 1], [1, 0]])
    with pytest.raises(DataError, match=r"some item has these codes already(.|\n)*codes \(1, 0\)"):
        trie.insert([[1, 1], [1, 0]])
    with pytest.raises(DataError, match=r"items 0, 2 share codes \(1, 1\)"):
        trie.insert([[1, 1], [0, 0], [1, 1]])
    with pytest.raises(DataError, match="codes of 3 levels do not fit a trie of 2"):
        trie.insert([[1, 1, 1]])


def test_items_that_are_not_there_or_are_all_there_is_cannot_be_removed():
    trie = Trie.from_codes([[0, 1], [1, 0]])
    with pytest.raises(UnknownItemError, match=r"item_index 1 or 2 is outside 0\.\.1"):
        trie.remove([1, 2])
    with pytest.raises(UnknownItemError, match="outside"):
        trie.remove([-1])
    with pytest.raises(DataError, match="all 2 items would be removed"):
        trie.remove([1, 0])


@pytest.mark.slow
def test_updating_a_million_items_is_quicker_than_building_anew():
    codes = np.unique(np.random.default_rng(0).integers(0, 256, (1_001_000, 4)), axis=0)
    codes = np.random.default_rng(1).permutation(codes)
    trie = Trie.from_codes(codes[:-1000])

    def time_best(work):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    build = time_best(lambda: Trie.from_codes(codes))
    assert time_best(lambda: trie.insert(codes[-1000:])) < build
    assert time_best(lambda: trie.remove(np.arange(1000))) < build

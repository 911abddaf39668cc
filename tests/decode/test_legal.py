"""Filters in the trie's terms, against counting items one by one."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter
from genrec.decode.legal import _COUNTS, LegalItems, MaskCounts, count_mask
from genrec.decode.request import count_legal
from genrec.decode.trie import Trie
from tests.decode.made_catalogues import catalogues


def wanted_once(wanted):
    """The filter as a checked request has it."""
    return replace(wanted, excluded=np.unique(wanted.excluded))


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.data())
def test_the_legal_items_under_every_node_are_counted(table, data):
    n_items = len(table)
    trie = Trie.from_codes(table)
    shared = np.array(data.draw(st.lists(st.booleans(), min_size=n_items, max_size=n_items)))
    filters = []
    for _ in range(data.draw(st.integers(0, 4))):
        items = data.draw(st.lists(st.integers(0, n_items - 1), max_size=2 * n_items))
        mask = data.draw(st.sampled_from([None, shared, ~shared]))
        few = data.draw(st.none() | st.lists(st.integers(0, n_items - 1), max_size=n_items))
        only = None if few is None else np.array(few, dtype=np.int64)
        filters.append(ItemFilter(np.array(items, dtype=np.int64), mask, only))
    legal = LegalItems(trie, filters)
    for row, wanted in enumerate(filters):
        free = np.ones(n_items, dtype=bool) if wanted.allowed is None else wanted.allowed.copy()
        free[wanted.excluded] = False
        if wanted.only is not None:
            free &= np.isin(np.arange(n_items), wanted.only)
        assert int(free.sum()) == count_legal([wanted_once(wanted)], n_items)[0]
        for level in range(trie.n_levels + 1):
            nodes = np.arange(trie.level_sizes[level])
            rows = np.full(nodes.shape, row)
            own = trie.find_nodes(table[:, :level])
            counts = np.bincount(own[free], minlength=len(nodes))
            np.testing.assert_array_equal(legal.count(level, rows, nodes), counts)
            np.testing.assert_array_equal(legal.is_legal(level, rows, nodes), counts > 0)


def test_a_batch_without_filters_is_free():
    trie = Trie.from_codes([[0, 1], [2, 0]])
    assert LegalItems(trie, [ItemFilter(), ItemFilter()]).is_free
    assert not LegalItems(trie, [ItemFilter(np.array([1]))]).is_free
    assert not LegalItems(trie, [ItemFilter(allowed=np.array([True, True]))]).is_free
    assert not LegalItems(trie, [ItemFilter(only=np.array([1]))]).is_free


def test_leaves_before_any_leaf_are_counted_over_many_words():
    legal = np.random.default_rng(0).random(1000) < 0.3
    before = MaskCounts(legal).count_before(np.arange(1001))
    np.testing.assert_array_equal(before, np.append(0, np.cumsum(legal)))


def test_a_read_only_mask_is_worked_through_once_a_trie_and_forgotten_with_it():
    trie, other = (Trie.from_codes(codes) for codes in ([[0, 1], [2, 0]], [[5, 1], [2, 0]]))
    mask = np.array([True, False])
    assert count_mask(trie, mask) is not count_mask(trie, mask), "it may change"
    mask.setflags(write=False)
    counts = count_mask(trie, mask)
    assert count_mask(trie, mask) is counts
    assert count_mask(other, mask) is not counts
    assert counts.count_before(np.array([0, 1, 2])).tolist() == [0, 1, 1]
    assert count_mask(other, mask).count_before(np.array([0, 1, 2])).tolist() == [0, 0, 1]
    old = id(mask)
    del mask
    gc.collect()
    assert old not in _COUNTS[trie] and old not in _COUNTS[other]

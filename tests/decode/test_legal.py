"""Filters in the trie's terms, against counting items one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter
from genrec.decode.legal import LegalItems
from genrec.decode.trie import Trie
from tests.decode.made_catalogues import catalogues


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
        filters.append(ItemFilter(np.array(items, dtype=np.int64), mask))
    legal = LegalItems(trie, filters)
    for row, wanted in enumerate(filters):
        free = np.ones(n_items, dtype=bool) if wanted.allowed is None else wanted.allowed.copy()
        free[wanted.excluded] = False
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

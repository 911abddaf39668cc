"""Which prefixes still lead to an item that a request may be answered with.

Owns filters in the trie's terms: how many legal leaves lie under a node. It is a pure function of
the node, so a search steps around dead prefixes and loses no place to an item that is filtered out
later. Knows no token and no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import ItemFilter
from genrec.decode.trie import Trie
from genrec.types import IndexArray


class LegalItems:
    """The filters of a batch of requests over one trie."""

    def __init__(self, trie: Trie, filters: Sequence[ItemFilter]) -> None:
        """Count legal leaves: one pass over the items for each distinct mask, none without.

        Args:
            trie: the catalogue.
            filters: one a request, checked; excluded items may repeat.
        """
        self._trie = trie
        sums: list[NDArray[np.int32]] = []
        tables: dict[int, int] = {}
        self._table = np.full(len(filters), -1, dtype=np.int64)
        for row, wanted in enumerate(filters):
            if wanted.allowed is None:
                continue
            if id(wanted.allowed) not in tables:
                tables[id(wanted.allowed)] = len(sums)
                legal = wanted.allowed[trie.order]
                sums.append(np.append(np.int32(0), np.cumsum(legal, dtype=np.int32)))
            self._table[row] = tables[id(wanted.allowed)]
        self._sums = np.stack(sums) if sums else np.empty((0, 0), dtype=np.int32)
        self._keys = self._find_excluded(filters)

    def _find_excluded(self, filters: Sequence[ItemFilter]) -> IndexArray:
        """`row * (N + 1) + leaf`, rising, of every excluded leaf that a mask has not ruled out."""
        counts = [len(wanted.excluded) for wanted in filters]
        if not sum(counts):
            return np.empty(0, dtype=np.int64)
        rows = np.repeat(np.arange(len(counts)), counts)
        leaves = self._trie.leaves[np.concatenate([f.excluded for f in filters])].astype(np.int64)
        table = self._table[rows]
        if len(self._sums):
            legal = table < 0
            at = np.flatnonzero(~legal)
            sums, leaf = self._sums, leaves[at]
            legal[at] = sums[table[at], leaf + 1] > sums[table[at], leaf]
            rows, leaves = rows[legal], leaves[legal]
        return np.unique(rows * (self._trie.n_items + 1) + leaves)

    @property
    def is_free(self) -> bool:
        """Whether every item is legal for every request."""
        return not len(self._keys) and bool((self._table < 0).all())

    def count(self, level: int, rows: IndexArray, nodes: IndexArray) -> IndexArray:
        """How many legal items lie under each node.

        Args:
            level: how many codes the nodes' prefixes have.
            rows: (C,) the request of each node.
            nodes: (C,) nodes of that level.
        """
        first, end = self._trie.leaf_ranges(level, nodes)
        found = end - first
        masked = np.flatnonzero(self._table[rows] >= 0)
        if masked.size:
            table = self._table[rows[masked]]
            found[masked] = self._sums[table, end[masked]] - self._sums[table, first[masked]]
        if self._keys.size:
            start = rows * (self._trie.n_items + 1)
            found -= np.searchsorted(self._keys, start + end)
            found += np.searchsorted(self._keys, start + first)
        return found

    def is_legal(self, level: int, rows: IndexArray, nodes: IndexArray) -> NDArray[np.bool_]:
        """Which nodes lead to at least one legal item."""
        if self.is_free:
            return np.ones(len(nodes), dtype=np.bool_)
        return self.count(level, rows, nodes) > 0

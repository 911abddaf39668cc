"""Which prefixes still lead to an item that a request may be answered with.

Owns filters in the trie's terms: how many legal leaves lie under a node. It is a pure function of
the node, so a search steps around dead prefixes and loses no place to an item that is filtered out
later. Knows no token and no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import ItemFilter
from genrec.decode.request import list_only
from genrec.decode.trie import Children, IntArray
from genrec.types import IndexArray

_NOTHING: IndexArray = np.empty(0, dtype=np.int64)


class PrefixTree(Protocol):
    """What a search and its filters ask of a trie: of codes (`Trie`) or of titles (`TitleTrie`).

    Its leaves are numbered so that those under a node are a range.
    """

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        ...

    @property
    def order(self) -> IntArray:
        """The item_index at each leaf."""
        ...

    @property
    def leaves(self) -> IntArray:
        """The leaf of each item."""
        ...

    def expand(self, level: int, nodes: IndexArray) -> Children:
        """Every legal extension of some nodes of a level."""
        ...

    def leaf_ranges(self, level: int, nodes: IndexArray) -> tuple[IndexArray, IndexArray]:
        """The first leaf under each node of a level, and the one after its last."""
        ...


class MaskCounts:
    """How many leaves of a mask come before each leaf, in 1.5 bits a leaf.

    A count for each 64 leaves, and the bits themselves: 1.9 MB for 10 million items.
    """

    def __init__(self, legal: NDArray[np.bool_]) -> None:
        """Count the legal leaves, (N,) bool in the trie's order."""
        words = np.zeros(len(legal) // 64 + 1, dtype=np.uint64)
        packed = np.packbits(legal, bitorder="little")
        words.view(np.uint8)[: len(packed)] = packed
        counts = np.bitwise_count(words)
        self._before = np.zeros(len(words), dtype=np.int32)
        np.cumsum(counts[:-1], out=self._before[1:])
        self._words = words.astype("<u8", copy=False)

    def count_before(self, leaves: IndexArray) -> IndexArray:
        """How many legal leaves come before each of these, 0 to N."""
        word, bit = leaves >> 6, (leaves & 63).astype(np.uint64)
        below = self._words[word] & ((np.uint64(1) << bit) - np.uint64(1))
        found: IndexArray = self._before[word] + np.bitwise_count(below).astype(np.int64)
        return found


_COUNTS: WeakKeyDictionary[PrefixTree, dict[int, tuple[ReferenceType[Any], MaskCounts]]] = (
    WeakKeyDictionary()
)


def count_mask(trie: PrefixTree, mask: NDArray[np.bool_]) -> MaskCounts:
    """The counts of a mask; those of a read-only one are kept while both it and the trie live."""
    known = _COUNTS.setdefault(trie, {})
    entry = known.get(id(mask))
    if entry is not None and entry[0]() is mask:
        return entry[1]
    counts = MaskCounts(mask[trie.order])
    if not mask.flags.writeable:
        key = id(mask)
        known[key] = (ref(mask, lambda _: known.pop(key, None)), counts)
    return counts


class LegalItems:
    """The filters of a batch of requests over one trie."""

    def __init__(self, trie: PrefixTree, filters: Sequence[ItemFilter]) -> None:
        """Count legal leaves: one pass over the items for each distinct mask, none without.

        Args:
            trie: the catalogue.
            filters: one a request, checked; excluded items may repeat.
        """
        self._trie = trie
        self._masks: list[MaskCounts] = []
        tables: dict[int, int] = {}
        self._table = np.full(len(filters), -1, dtype=np.int64)
        for row, wanted in enumerate(filters):
            if wanted.allowed is None or wanted.only is not None:
                continue
            if id(wanted.allowed) not in tables:
                tables[id(wanted.allowed)] = len(self._masks)
                self._masks.append(count_mask(trie, wanted.allowed))
            self._table[row] = tables[id(wanted.allowed)]
        self._is_listed = np.array([wanted.only is not None for wanted in filters], dtype=np.bool_)
        self._listed = self._find_keys(
            [_NOTHING if wanted.only is None else list_only(wanted) for wanted in filters]
        )
        self._keys = self._find_keys([_list_excluded(wanted) for wanted in filters])

    def _find_keys(self, items: Sequence[IndexArray]) -> IndexArray:
        """`row * (N + 1) + leaf`, rising, of these items of each request."""
        counts = [len(each) for each in items]
        if not sum(counts):
            return _NOTHING
        rows = np.repeat(np.arange(len(counts)), counts)
        leaves = self._trie.leaves[np.concatenate(items)].astype(np.int64)
        return np.unique(rows * (self._trie.n_items + 1) + leaves)

    @property
    def is_free(self) -> bool:
        """Whether every item is legal for every request."""
        is_masked = self._is_listed | (self._table >= 0)
        return not len(self._keys) and not is_masked.any()

    def count(self, level: int, rows: IndexArray, nodes: IndexArray) -> IndexArray:
        """How many legal items lie under each node.

        Args:
            level: how many codes the nodes' prefixes have.
            rows: (C,) the request of each node.
            nodes: (C,) nodes of that level.
        """
        first, end = self._trie.leaf_ranges(level, nodes)
        found = end - first
        for number, mask in enumerate(self._masks):
            at = np.flatnonzero(self._table[rows] == number)
            found[at] = mask.count_before(end[at]) - mask.count_before(first[at])
        start = rows * (self._trie.n_items + 1)
        if self._keys.size:
            found -= _count_between(self._keys, start + first, start + end)
        if self._is_listed.any():
            listed = _count_between(self._listed, start + first, start + end)
            found = np.where(self._is_listed[rows], listed, found)
        return found

    def is_legal(self, level: int, rows: IndexArray, nodes: IndexArray) -> NDArray[np.bool_]:
        """Which nodes lead to at least one legal item."""
        if self.is_free:
            return np.ones(len(nodes), dtype=np.bool_)
        return self.count(level, rows, nodes) > 0


def _list_excluded(wanted: ItemFilter) -> IndexArray:
    """The excluded items that nothing else in the filter has ruled out, each perhaps twice."""
    if wanted.only is not None:
        return _NOTHING
    items = np.asarray(wanted.excluded, dtype=np.int64)
    return items if wanted.allowed is None else items[wanted.allowed[items]]


def _count_between(keys: IndexArray, first: IndexArray, end: IndexArray) -> IndexArray:
    return np.searchsorted(keys, end) - np.searchsorted(keys, first)

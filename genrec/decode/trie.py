"""The legal code sequences of a catalogue, as flat arrays.

Owns which code may follow which prefix, and which items lie under it. A node
is a prefix's rank among all prefixes of its length, so it is a pure function of the prefix: nothing
here counts steps or remembers a beam. Knows no token, no model and no tensor library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrec.decode.trie_update import Levels, delete_leaves, insert_rows, narrow, narrow_type
from genrec.errors import DataError, DecodeError, UnknownItemError, join_problems
from genrec.types import IndexArray

IntArray = NDArray[np.integer]

_KEY_BITS = 64


@dataclass(frozen=True, slots=True)
class Children:
    """Every legal one-code extension of some prefixes, grouped by prefix, codes rising.

    Shapes:
        parent_row: (C,) int64, which of the given prefixes each child extends; never falls.
        node: (C,) int64, the child's node, one level below its parent.
        code: (C,) int64, the child's last code.
    """

    parent_row: IndexArray
    node: IndexArray
    code: IndexArray


@dataclass(frozen=True, eq=False)
class Trie:
    """All legal code sequences of N items, one sequence an item.

    Shapes:
        order: (N,) unsigned, the item_index at each leaf; leaves rise by code sequence.
        codes: one (nodes of level d + 1,) array for each d < L: the last code of each node.
        first_child: one (nodes of level d + 1,) array for each d < L: where each node's children
            begin on the next level; the last entry closes the last node.
    """

    order: IntArray
    codes: tuple[IntArray, ...]
    first_child: tuple[IntArray, ...]

    @classmethod
    def from_codes(cls, codes: ArrayLike) -> Trie:
        """Build the trie of a catalogue.

        Args:
            codes: (N, L) ints, one row an item; the row number is the item_index.

        Raises:
            DataError: not a table of non-negative ints, no items, or two items with the same codes.
        """
        table = _check_codes(codes)
        order, columns = _sort_rows(table)
        level_codes: list[IntArray] = []
        first_child: list[IntArray] = []
        above = np.zeros(len(table), dtype=np.bool_)  # where, among the leaves, a new prefix begins
        above[0] = True
        for column in columns:
            below = above.copy()
            below[1:] |= column[1:] != column[:-1]
            level_codes.append(narrow(column[below]))
            starts = np.flatnonzero(above[below])
            first_child.append(narrow(np.append(starts, np.count_nonzero(below))))
            above = below
        if not above.all():
            raise DataError(_describe_duplicates(table, order, above))
        return cls(narrow(order), tuple(level_codes), tuple(first_child))

    def insert(self, codes: ArrayLike) -> Trie:
        """The trie with more items, equal to one built from all codes; this one is unchanged.

        Nothing is sorted but the new codes: the arrays are merged, in O(N + M log M).

        Args:
            codes: (M, L) ints, the new items'; they get item_index N, N + 1 and so on.

        Raises:
            DataError: not a table of L non-negative ints a row, or codes that some item has.
        """
        table = _check_codes(codes)
        if table.shape[1] != self.n_levels:
            raise DataError(
                f"codes of {table.shape[1]} levels do not fit a trie of {self.n_levels}"
            )
        added, columns = _sort_rows(table)
        rows = np.stack(list(columns), axis=1)
        levels, places, is_known = insert_rows(self._levels, rows)
        if is_known.any():
            problems = [f"codes {_show_codes(row)}" for row in rows[is_known]]
            raise DataError(join_problems("some item has these codes already", problems))
        repeats = (rows[1:] == rows[:-1]).all(axis=1)
        if repeats.any():
            is_start = np.append(True, ~repeats)
            raise DataError(_describe_duplicates(table, added, is_start))
        order = np.insert(
            self.order.astype(narrow_type(self.n_items + len(table) - 1)),
            places,
            added.astype(np.int64) + self.n_items,
        )
        return Trie(order, levels.codes, levels.first_child)

    def remove(self, items: ArrayLike) -> Trie:
        """The trie without some items, equal to one built from the codes that are left.

        As in a table whose rows are deleted, the others keep their order and close the gaps:
        item_index falls by the number of removed items before it. O(N), nothing is sorted.

        Args:
            items: item_index of those that go; repeats count once.

        Raises:
            DataError: no item would be left.
            UnknownItemError: an item_index outside the catalogue.
        """
        wanted = np.asarray(items, dtype=np.int64).ravel()
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.n_items:
            raise UnknownItemError(
                f"item_index {int(wanted.min())} or {int(wanted.max())} is outside "
                f"0..{self.n_items - 1}; remove items that the trie holds"
            )
        stays = np.ones(self.n_items, dtype=np.bool_)
        stays[wanted] = False
        n_left = int(np.count_nonzero(stays))
        if not n_left:
            raise DataError(f"all {self.n_items:,} items would be removed; a trie needs at least 1")
        kept = stays[self.order]
        renumbered = np.cumsum(stays, dtype=np.int64) - 1
        order = renumbered[self.order[kept]].astype(narrow_type(n_left - 1))
        levels = delete_leaves(self._levels, kept)
        return Trie(order, levels.codes, levels.first_child)

    @property
    def _levels(self) -> Levels:
        return Levels(self.codes, self.first_child)

    @property
    def n_items(self) -> int:
        """How many sequences are legal."""
        return len(self.order)

    @property
    def n_levels(self) -> int:
        """How many codes every sequence has."""
        return len(self.codes)

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """How many nodes each level has: the root's 1 first, the leaves' N last."""
        return (1, *(len(codes) for codes in self.codes))

    @cached_property
    def code_counts(self) -> tuple[int, ...]:
        """One more than the largest code of each level."""
        return tuple(int(codes.max()) + 1 for codes in self.codes)

    @property
    def n_bytes(self) -> int:
        """The memory that the arrays take, the item order included."""
        return sum(array.nbytes for array in (self.order, *self.codes, *self.first_child))

    @cached_property
    def leaves(self) -> IntArray:
        """The (N,) leaf of each item; made when first asked for, since only filters need it."""
        leaves = np.empty_like(self.order)
        leaves[self.order] = np.arange(self.n_items, dtype=self.order.dtype)
        return leaves

    def items(self, leaves: IndexArray) -> IndexArray:
        """The item_index at each leaf, a leaf being a node of the last level."""
        return self.order[leaves].astype(np.int64)

    def expand(self, level: int, nodes: IndexArray) -> Children:
        """Every legal extension of some nodes.

        Args:
            level: how many codes the nodes' prefixes have, 0 for the root.
            nodes: (W,) nodes of that level; row w of the result's parents is nodes[w].

        Raises:
            DecodeError: a complete sequence has no extension, and an unknown node no meaning.
        """
        self._check_nodes(level, nodes)
        first_child = self.first_child[level]
        first = first_child[nodes].astype(np.int64)
        counts = first_child[nodes + 1].astype(np.int64) - first
        ends = np.cumsum(counts)
        parent_row = np.repeat(np.arange(len(nodes)), counts)
        n_children = int(ends[-1]) if len(nodes) else 0
        node = np.arange(n_children) + np.repeat(first - (ends - counts), counts)
        return Children(parent_row, node, self.codes[level][node].astype(np.int64))

    def children(self, prefixes: ArrayLike) -> Children:
        """Every legal extension of some prefixes: a pure function of the prefixes alone.

        Args:
            prefixes: (W, d) ints, 0 <= d < L; (W, 0) asks W times for the first level.

        Raises:
            DecodeError: a prefix that no item has, or that is complete already.
        """
        table = np.asarray(prefixes)
        return self.expand(table.shape[1], self.find_nodes(table))

    def find_nodes(self, prefixes: ArrayLike) -> IndexArray:
        """The node of each prefix.

        Args:
            prefixes: (W, d) ints, 0 <= d <= L.

        Raises:
            DecodeError: a prefix that no item has; there is no answer below it, so none is given.
        """
        table = np.asarray(prefixes)
        if table.ndim != 2 or table.shape[1] > self.n_levels:  # noqa: PLR2004 - a table has two axes
            raise DecodeError(
                f"prefixes of shape {table.shape} do not fit; give (prefixes, codes) with at most "
                f"{self.n_levels} codes each"
            )
        nodes = np.zeros(len(table), dtype=np.int64)
        for level in range(table.shape[1]):
            nodes = self._step_down(level, nodes, table)
        return nodes

    def leaf_ranges(self, level: int, nodes: IndexArray) -> tuple[IndexArray, IndexArray]:
        """The first leaf under each node, and the one after its last: all its items lie between.

        Args:
            level: how many codes the nodes' prefixes have, 0 to L.
            nodes: (W,) nodes of that level.
        """
        first: IntArray = nodes
        end: IntArray = nodes + 1
        for first_child in self.first_child[level:]:
            first, end = first_child[first], first_child[end]
        return first.astype(np.int64), end.astype(np.int64)

    def _check_nodes(self, level: int, nodes: IndexArray) -> None:
        if not 0 <= level < self.n_levels:
            raise DecodeError(
                f"a prefix of {level} codes has no extension; sequences here have "
                f"{self.n_levels} codes, so extend 0 to {self.n_levels - 1}"
            )
        low, high = (int(nodes.min()), int(nodes.max())) if nodes.size else (0, 0)
        if low < 0 or high >= self.level_sizes[level]:
            raise DecodeError(
                f"node {low if low < 0 else high} does not exist on level {level}, which has "
                f"{self.level_sizes[level]} nodes; take nodes from expand() or find_nodes()"
            )

    def _step_down(self, level: int, nodes: IndexArray, table: IntArray) -> IndexArray:
        """The child of each node by the code in column `level`: one bisection for all nodes."""
        codes, wanted = self.codes[level], table[:, level]
        low = self.first_child[level][nodes].astype(np.int64)
        end = self.first_child[level][nodes + 1].astype(np.int64)
        high = end
        while np.any(low < high):
            middle = (low + high) // 2
            below = (low < high) & (codes[np.minimum(middle, len(codes) - 1)] < wanted)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        found = (low < end) & (codes[np.minimum(low, len(codes) - 1)] == wanted)
        if not found.all():
            prefix = tuple(int(code) for code in table[int(np.argmin(found)), : level + 1])
            raise DecodeError(
                f"no item's codes begin with {prefix}; a legal prefix comes from children()"
            )
        return low


def _check_codes(codes: ArrayLike) -> IntArray:
    """The codes as an (N, L) int array, or an error that says what is wrong with them."""
    table = np.asarray(codes)
    if table.ndim != 2 or 0 in table.shape:  # noqa: PLR2004 - a table has two axes
        raise DataError(
            f"codes of shape {table.shape} make no trie; give (items, levels), at least one of each"
        )
    if not np.issubdtype(table.dtype, np.integer):
        raise DataError(f"codes are {table.dtype}; they must be integers")
    if np.issubdtype(table.dtype, np.signedinteger) and int(table.min()) < 0:
        rows = np.flatnonzero((table < 0).any(axis=1))
        problems = [f"item {row} has codes {_show_codes(table[row])}" for row in rows.tolist()]
        raise DataError(join_problems("codes must be 0 or more", problems))
    return table


def _sort_rows(table: IntArray) -> tuple[IntArray, Iterator[IntArray]]:
    """The rows' rising order, and the sorted columns one by one."""
    widths = [int(column.max()).bit_length() for column in table.T]
    n_bits, row_bits = sum(widths), (len(table) - 1).bit_length()
    if n_bits > _KEY_BITS:
        order = np.lexsort(table.T[::-1])
        return order, (column[order] for column in table.T)
    key = np.zeros(len(table), dtype=np.uint64)
    for column, width in zip(table.T, widths, strict=True):
        # numpy leaves a shift by all 64 bits undefined; there the key is still zero anyway.
        key <<= np.uint64(min(width, _KEY_BITS - 1))
        key |= column.astype(np.uint64)
    if n_bits + row_bits > _KEY_BITS:
        order = np.argsort(key, kind="stable")
        return order, _unpack_columns(key[order], widths)
    # The row rides in the low bits: sorting values is several times faster than sorting places.
    key <<= np.uint64(row_bits)
    key |= np.arange(len(table), dtype=np.uint64)
    key.sort()
    order = (key & np.uint64((1 << row_bits) - 1)).astype(np.min_scalar_type(len(table) - 1))
    key >>= np.uint64(row_bits)
    return order, _unpack_columns(key, widths)


def _unpack_columns(key: NDArray[np.uint64], widths: Sequence[int]) -> Iterator[IntArray]:
    """The columns that a packed key was made from, first to last."""
    shift = sum(widths)
    column = np.empty_like(key)  # one buffer for all: fresh pages cost more than the arithmetic
    for width in widths:
        shift -= width
        largest = (1 << width) - 1
        np.right_shift(key, np.uint64(min(shift, _KEY_BITS - 1)), out=column)
        column &= np.uint64(largest)
        yield column.astype(np.min_scalar_type(largest))


def _describe_duplicates(table: IntArray, order: IntArray, is_start: NDArray[np.bool_]) -> str:
    """One line for each code sequence that several items share."""
    begins = np.flatnonzero(is_start)
    ends = np.append(begins[1:], len(table))
    shared = ends - begins > 1
    problems = []
    for begin, end in zip(begins[shared].tolist(), ends[shared].tolist(), strict=True):
        items = ", ".join(str(item) for item in sorted(order[begin:end].tolist()))
        problems.append(f"items {items} share codes {_show_codes(table[order[begin]])}")
    return join_problems("every item needs a code sequence of its own", problems)


def _show_codes(codes: IntArray) -> str:
    return "(" + ", ".join(str(int(code)) for code in codes) + ")"

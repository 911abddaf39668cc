"""The legal token sequences of a catalogue's titles, of many lengths, as flat arrays.

Owns which tokens may follow a prefix. A node is a depth and a range of places in the titles' order,
packed into one number, so nothing is stored for the nodes themselves: 20 bytes a title, and 2 a
token (4 in vocabularies above 65,536). Knows no text, no model and no tensor library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genrec.decode.trie import Children, IntArray
from genrec.decode.trie_update import narrow
from genrec.errors import DataError, join_problems
from genrec.types import IndexArray

# A node's bits: first place, number of places, depth. So nodes rise with their first place.
_PLACE_BITS, _DEPTH_BITS = 26, 11
MOST_TITLES = 1 << _PLACE_BITS
MOST_TOKENS = (1 << _DEPTH_BITS) - 1


@dataclass(frozen=True, eq=False)
class TitleTrie:
    """Token sequences of items, none of them the beginning of another; equal ones share a leaf.

    A place is a titled item's position in the order of sequences, equal ones by item_index. It is
    what `Trie` calls a leaf: those under a node are a range.

    Attributes:
        n_items: how many items the catalogue holds, those without a sequence too.

    Shapes:
        order: (M,) the item_index at each place.
        tokens: (all tokens,) in the order of places.
        offsets: (M + 1,) int64, where each place's tokens begin.
        splits: (M - S,) int64, rising: `depth * M + place` of each place whose sequence leaves that
            of the place before it at that depth; S of them leave at none.
    """

    n_items: int
    order: IntArray
    tokens: IntArray
    offsets: IndexArray
    splits: IndexArray

    @classmethod
    def from_sequences(cls, tokens: IntArray, lengths: IndexArray) -> TitleTrie:
        """The trie of N items; one of length 0 has no sequence and is no answer.

        Args:
            tokens: of all items, one after another, each sequence ended so that it is not the
                beginning of another (by an end token, or by having the greatest length).
            lengths: (N,) how many of them each item has.

        Raises:
            DataError: no sequence at all, too many or too long ones, or one that begins another.
        """
        titled = np.flatnonzero(lengths)
        if not len(titled):
            raise DataError(
                f"none of the {len(lengths):,} items has a title, so there is nothing to answer "
                f"with; give the items titles, or use a model with semantic ids"
            )
        if len(titled) >= MOST_TITLES or lengths.max() > MOST_TOKENS:
            raise DataError(
                f"{len(titled):,} titles of up to {lengths.max():,} tokens are more than "
                f"{MOST_TITLES - 1:,} of {MOST_TOKENS:,}; cut long titles, or split the catalogue"
            )
        begins = np.cumsum(lengths) - lengths
        keys = _list_keys(tokens, begins, lengths)
        # Python's sort: stable, and it compares bytes as they stand, which numpy's objects do not.
        order = titled[sorted(range(len(titled)), key=[keys[row] for row in titled].__getitem__)]
        lengths = lengths[order]
        offsets = np.append(0, np.cumsum(lengths))
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        ordered = tokens[np.repeat(begins[order], lengths) + inside]
        shared = _count_shared(ordered, offsets)
        _refuse_beginnings(order, shared, lengths)
        leaves = np.flatnonzero(shared < lengths)  # the others repeat the place before them
        splits = np.sort(shared[leaves] * len(order) + leaves)
        return cls(len(keys), narrow(order), narrow(ordered), offsets, splits)

    @property
    def n_titles(self) -> int:
        """How many items have a sequence."""
        return len(self.order)

    @property
    def root(self) -> int:
        """The node of the empty prefix."""
        return int(self._pack(np.array([0]), np.array([self.n_titles]), np.array([0]))[0])

    @cached_property
    def lengths(self) -> IndexArray:
        """(M,) how many tokens the sequence at each place has."""
        return np.diff(self.offsets)

    @property
    def n_levels(self) -> int:
        """How many tokens the longest sequence has."""
        return int(self.lengths.max())

    @property
    def n_bytes(self) -> int:
        """The memory that the arrays take."""
        arrays = (self.order, self.tokens, self.offsets, self.splits)
        return sum(array.nbytes for array in arrays)

    @property
    def are_first(self) -> NDArray[np.bool_]:
        """(M,) whether each place's sequence differs from that of the place before it."""
        first = np.zeros(self.n_titles, dtype=np.bool_)
        first[0] = True
        first[self.splits % self.n_titles] = True
        return first

    @cached_property
    def answerable(self) -> NDArray[np.bool_]:
        """(N,) whether each item has a sequence."""
        mask = np.zeros(self.n_items, dtype=np.bool_)
        mask[self.order] = True
        return mask

    @cached_property
    def leaves(self) -> IntArray:
        """(N,) the place of each item; that of one without a sequence means nothing."""
        leaves = np.zeros(self.n_items, dtype=self.order.dtype)
        leaves[self.order] = np.arange(self.n_titles, dtype=self.order.dtype)
        return leaves

    def expand(self, level: int, nodes: IndexArray) -> Children:
        """Every legal extension of some nodes by one token, tokens rising within each.

        Args:
            level: not used: a node knows its depth, and they may be mixed.
            nodes: (W,) nodes that are not complete.
        """
        del level
        first, end, depth = self._unpack(nodes)
        n_places = self.n_titles
        low = np.searchsorted(self.splits, depth * n_places + first, side="right")
        high = np.searchsorted(self.splits, depth * n_places + end, side="left")
        counts = high - low + 1  # the first child begins where its parent does
        ends = np.cumsum(counts)
        parent_row = np.repeat(np.arange(len(nodes)), counts)
        starts = np.empty(int(ends[-1]) if len(nodes) else 0, dtype=np.int64)
        is_first = np.zeros(len(starts), dtype=np.bool_)
        is_first[ends - counts] = True
        starts[is_first] = first
        rest = np.flatnonzero(~is_first)
        own = parent_row[rest]
        starts[rest] = (
            self.splits[low[own] + rest - (ends - counts)[own] - 1] - depth[own] * n_places
        )
        stops = np.append(starts[1:], 0)
        stops[ends - 1] = end
        at = depth[parent_row]
        token = self.tokens[self.offsets[starts] + at].astype(np.int64)
        return Children(parent_row, self._pack(starts, stops, at + 1), token)

    def leaf_ranges(self, level: int, nodes: IndexArray) -> tuple[IndexArray, IndexArray]:
        """The first place under each node, and the one after its last; `level` is not used."""
        del level
        first, end, _ = self._unpack(nodes)
        return first, end

    def find_depths(self, nodes: IndexArray) -> IndexArray:
        """(W,) how many tokens each node's prefix has."""
        return self._unpack(nodes)[2]

    def are_complete(self, nodes: IndexArray) -> NDArray[np.bool_]:
        """(W,) whether each node's prefix is a whole sequence."""
        first, _, depth = self._unpack(nodes)
        return np.asarray(self.lengths[first] == depth)

    def find_longest(self, nodes: IndexArray) -> IndexArray:
        """(W,) how many tokens the longest sequence under each node has; nodes do not overlap."""
        first, end, _ = self._unpack(nodes)
        edges = np.stack([first, end], axis=1).ravel()
        padded = np.append(self.lengths, 0)  # the last end is one past the last place
        found: IndexArray = np.maximum.reduceat(padded, edges)[::2] if len(nodes) else first
        return found

    def list_items(self, nodes: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
        """The items under nodes: the row of each in `nodes`, its item_index, and its own leaf."""
        first, end, depth = self._unpack(nodes)
        counts = end - first
        row = np.repeat(np.arange(len(nodes)), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        return row, self.order[place].astype(np.int64), self._pack(place, place + 1, depth[row])

    def _pack(self, first: IndexArray, end: IndexArray, depth: IndexArray) -> IndexArray:
        packed: IndexArray = (
            (first << (_PLACE_BITS + _DEPTH_BITS)) | ((end - first) << _DEPTH_BITS) | depth
        )
        return packed

    def _unpack(self, nodes: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
        first = nodes >> (_PLACE_BITS + _DEPTH_BITS)
        size = (nodes >> _DEPTH_BITS) & ((1 << _PLACE_BITS) - 1)
        return first, first + size, nodes & ((1 << _DEPTH_BITS) - 1)


def _list_keys(tokens: IntArray, begins: IndexArray, lengths: IndexArray) -> list[bytes]:
    """Each sequence as bytes that compare as its tokens do."""
    whole = tokens.astype(">u4").tobytes()
    edges = zip((begins * 4).tolist(), ((begins + lengths) * 4).tolist(), strict=True)
    return [whole[begin:end] for begin, end in edges]


def _count_shared(tokens: IntArray, offsets: IndexArray) -> IndexArray:
    """(M,) how many tokens each sequence begins with that the one before it begins with too."""
    lengths = np.diff(offsets)
    shared = np.zeros(len(lengths), dtype=np.int64)
    for depth, rows in _walk_equal(tokens, offsets, lengths):
        shared[rows] = depth + 1
    return shared


def _walk_equal(
    tokens: IntArray, offsets: IndexArray, lengths: IndexArray
) -> Iterator[tuple[int, IndexArray]]:
    rows = np.arange(1, len(lengths))
    for depth in range(int(lengths.max())):
        rows = rows[np.minimum(lengths[rows], lengths[rows - 1]) > depth]
        rows = rows[tokens[offsets[rows] + depth] == tokens[offsets[rows - 1] + depth]]
        if not len(rows):
            return
        yield depth, rows


def _refuse_beginnings(order: IndexArray, shared: IndexArray, lengths: IndexArray) -> None:
    """Raise where a sequence is the beginning of the next: then it would be no leaf."""
    places = np.flatnonzero((shared[1:] == lengths[:-1]) & (lengths[1:] > lengths[:-1])) + 1
    problems = [f"item {order[place - 1]} begins item {order[place]}" for place in places.tolist()]
    if problems:
        raise DataError(join_problems("end each sequence by a token that is in no title", problems))

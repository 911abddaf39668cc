"""The trie of titles against a dictionary of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter
from genrec.decode.legal import LegalItems
from genrec.decode.title_trie import MOST_TOKENS, TitleTrie
from genrec.errors import DataError

from .made_titles import END, build_trie, draw_titles

BODIES = st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=12)


def end_all(bodies: list[list[int]]) -> list[list[int]]:
    """An empty body is an item without a title."""
    return [[*body, END] if body else [] for body in bodies]


def walk(trie: TitleTrie) -> dict[tuple[int, ...], int]:
    """Every prefix and its node, by asking for children level after level."""
    found = {(): trie.root}
    rows = [((), trie.root)]
    while rows:
        children = trie.expand(0, np.array([node for _, node in rows]))
        assert (np.diff(children.parent_row) >= 0).all()
        below = [
            ((*rows[row][0], code), node)
            for row, node, code in zip(
                children.parent_row.tolist(),
                children.node.tolist(),
                children.code.tolist(),
                strict=True,
            )
        ]
        found.update(below)
        complete = trie.are_complete(children.node)
        rows = [pair for pair, whole in zip(below, complete, strict=True) if not whole]
    return found


@given(BODIES)
def test_every_prefix_is_there_and_no_other(bodies: list[list[int]]) -> None:
    sequences = end_all(bodies)
    if not any(sequences):
        return
    trie = build_trie(sequences)
    nodes = walk(trie)
    wanted = {tuple(row[:n]) for row in sequences if row for n in range(len(row) + 1)}
    assert nodes.keys() == wanted
    assert trie.n_levels == max(map(len, sequences))
    for prefix, node in nodes.items():
        under = [i for i, row in enumerate(sequences) if row and row[: len(prefix)] == [*prefix]]
        row, items, _ = trie.list_items(np.array([node]))
        assert sorted(items.tolist()) == under and not row.any()
        longest = max(len(sequences[item]) for item in under)
        assert trie.find_longest(np.array([node])).tolist() == [longest]
        assert trie.find_depths(np.array([node])).tolist() == [len(prefix)]
        assert bool(trie.are_complete(np.array([node]))[0]) == (prefix[-1:] == (END,))


@given(BODIES, st.integers(0, 2**12 - 1))
def test_filters_count_what_is_legal_under_a_prefix(bodies: list[list[int]], bits: int) -> None:
    sequences = end_all(bodies)
    if not any(sequences):
        return
    trie = build_trie(sequences)
    allowed = np.array([bits >> row & 1 for row in range(len(sequences))], dtype=np.bool_)
    excluded = np.flatnonzero(trie.answerable)[:2]
    legal = LegalItems(trie, [ItemFilter(excluded, allowed), ItemFilter(excluded)])
    for prefix, node in walk(trie).items():
        under = {i for i, row in enumerate(sequences) if row and row[: len(prefix)] == [*prefix]}
        left = under - set(excluded.tolist())
        counts = legal.count(len(prefix), np.array([0, 1]), np.array([node, node]))
        assert counts.tolist() == [len(left & set(np.flatnonzero(allowed).tolist())), len(left)]


def test_equal_titles_share_a_leaf_in_the_order_of_items() -> None:
    trie = build_trie([[7, END], [5, 6, END], [7, END], [], [7, END]])
    node = walk(trie)[7, END]
    assert trie.list_items(np.array([node]))[1].tolist() == [0, 2, 4]
    assert trie.n_items == 5 and trie.n_titles == 4
    assert trie.are_first.sum() == 2
    assert trie.answerable.tolist() == [True, True, True, False, True]


def test_nodes_of_several_depths_can_be_expanded_together() -> None:
    sequences = draw_titles(50)
    trie = build_trie(sequences)
    nodes = {prefix: node for prefix, node in walk(trie).items() if prefix[-1:] != (END,)}
    mixed = list(nodes)[::3][::-1]
    children = trie.expand(0, np.array([nodes[prefix] for prefix in mixed]))
    for row, prefix in enumerate(mixed):
        codes = children.code[children.parent_row == row].tolist()
        longer = {s[len(prefix)] for s in sequences if tuple(s[: len(prefix)]) == prefix}
        assert codes == sorted(longer)


def test_sequences_that_make_no_trie_are_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 2 items has a title.*semantic ids"):
        build_trie([[], []])
    with pytest.raises(DataError, match=r"(?s)token that is in no title.*item 1 begins item 0"):
        build_trie([[4, 5, 6], [4, 5]])
    with pytest.raises(DataError, match=rf"up to {MOST_TOKENS + 1:,} tokens are more than"):
        build_trie([[1] * (MOST_TOKENS + 1)])


@pytest.mark.slow
def test_a_million_short_titles_take_little_memory_and_time() -> None:
    """No timing of one machine: work and bytes that grow with the tokens, not with their square."""
    rng = np.random.default_rng(0)
    n_items = 1_000_000
    lengths = rng.integers(3, 16, n_items)
    tokens = np.minimum(rng.zipf(1.3, int(lengths.sum())), 30_000)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = 40_000
    trie = TitleTrie.from_sequences(tokens, lengths)
    assert trie.n_bytes <= 2 * len(tokens) + (4 + 8 + 8) * n_items + 64
    rows, items, _ = trie.list_items(np.array([trie.root]))
    assert not rows.any() and len(np.unique(items)) == n_items

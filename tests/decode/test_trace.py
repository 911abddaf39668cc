"""The record of a search, against the search itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request
from genrec.decode.search import search_items
from genrec.decode.trace import SearchTrace
from genrec.decode.trie import Trie
from genrec.types import RankedItems

CODES = np.unique(np.random.default_rng(0).integers(0, 5, (60, 3)), axis=0)


def gain_of(codes: tuple[int, ...]) -> float:
    """A log-probability that depends on the whole prefix."""
    return -float(np.random.default_rng([*codes, 7]).uniform(0.1, 3))


def search(
    trace: SearchTrace | None,
    filters: list[ItemFilter] | None = None,
    wanted: Search = Search(width=6),  # noqa: B008  (it never changes)
) -> RankedItems:
    trie = Trie.from_codes(CODES)
    limits = EngineLimits(n_items=trie.n_items, vocabulary_size=10)
    request = check_request(limits, [[1]], 4, wanted, filters)
    dialogue = search_items(trie, request)
    if trace is not None:
        dialogue = trace.watch(dialogue, trie)
    prefixes: list[tuple[int, ...]] = []
    question = next(dialogue)
    while True:
        for node, code, parent in zip(
            question.nodes[0], question.codes[0], question.parents[0], strict=True
        ):
            prefixes.append((*prefixes[parent], int(code)) if question.level and node >= 0 else ())
        first = len(prefixes) - question.nodes.shape[1]
        gains = [
            gain_of((*prefixes[first + column], int(code)))
            for column, code in zip(question.column, question.code, strict=True)
        ]
        try:
            question = dialogue.send(torch.tensor(gains, dtype=torch.float32))
        except StopIteration as end:
            assert isinstance(end.value, RankedItems)
            return end.value


def test_watching_changes_nothing_and_the_kept_leaves_are_the_answers() -> None:
    trace = SearchTrace(most_left=3)
    watched, plain = search(trace), search(None)
    np.testing.assert_array_equal(watched.item_index, plain.item_index)
    leaves = [prefix for prefix in trace.levels[-1] if prefix.kept]
    assert [prefix.codes for prefix in leaves] == [tuple(CODES[i]) for i in plain.item_index[0]]
    np.testing.assert_allclose([prefix.score for prefix in leaves], plain.scores[0], rtol=1e-5)


def test_each_level_shows_what_was_kept_and_the_best_that_was_left() -> None:
    trace = SearchTrace(most_left=2)
    search(trace)
    assert len(trace.levels) == 3
    for depth, level in enumerate(trace.levels, start=1):
        assert all(len(prefix.codes) == depth for prefix in level)
        assert [p.score for p in level] == sorted((p.score for p in level), reverse=True)
        kept = [prefix for prefix in level if prefix.kept]
        left = [prefix for prefix in level if not prefix.kept]
        assert len(left) <= 2 and min(p.score for p in kept) >= max(
            (p.score for p in left), default=-np.inf
        )
        for prefix in level:
            total = sum(gain_of(prefix.codes[: n + 1]) for n in range(depth))
            assert prefix.score == pytest.approx(total, rel=1e-5)
    assert len([p for p in trace.levels[1] if p.kept]) == 6


def test_prefixes_that_a_filter_rules_out_are_not_shown() -> None:
    trace = SearchTrace(most_left=50)
    banned = np.flatnonzero(CODES[:, 0] == 2)
    search(trace, [ItemFilter(banned)])
    assert 2 not in {prefix.codes[0] for level in trace.levels for prefix in level}


def test_answers_of_diverse_groups_are_shown_as_answers() -> None:
    trace = SearchTrace()
    ranked = search(trace, wanted=Search(width=6, groups=3, diversity=50.0))
    leaves = [prefix.codes for prefix in trace.levels[-1] if prefix.kept]
    assert leaves == [tuple(CODES[item]) for item in ranked.item_index[0]]

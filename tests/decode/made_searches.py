"""Searches over made-up scores: a driver in place of an engine, and every item's true score."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request
from genrec.decode.search import search_items
from genrec.decode.trie import Trie


@dataclass
class Driver:
    """Answers questions from tables of gains and checks what it is asked.

    Attributes:
        gains: for each level (U, nodes of the next level) float32, at most 0.
        asked: for each user (level, node, score) of every prefix, in order.
    """

    gains: list[np.ndarray]
    asked: list[list[tuple[int, int, float]]] = field(default_factory=list)

    def rank(self, trie: Trie, k, search=Search(), filters=None):  # noqa: B008 - frozen
        n_users = len(self.gains[0])
        limits = EngineLimits(trie.n_items, 10)
        request = check_request(limits, [[1]] * n_users, k, search, filters)
        self.asked = [[] for _ in range(n_users)]
        numbered: list[list[tuple[int, int, float]]] = [[] for _ in range(n_users)]
        known = [{(0, 0): 0.0} for _ in range(n_users)]
        dialogue = search_items(trie, request)
        question = next(dialogue)
        while True:
            first = len(numbered[0])
            self._number(trie, question, numbered, known)
            gains = self.gains[question.level][question.user_row, question.node]
            for user, column, node, gain in zip(
                question.user_row.tolist(),
                question.column.tolist(),
                question.node.tolist(),
                gains,
                strict=True,
            ):
                score = np.float32(numbered[user][first + column][2]) + gain
                known[user][question.level + 1, node] = score
            try:
                question = dialogue.send(torch.from_numpy(gains))
            except StopIteration as end:
                return end.value

    def _number(self, trie, question, numbered, known):
        parts = question.nodes.tolist(), question.codes.tolist(), question.parents.tolist()
        for user, (nodes, codes, parents) in enumerate(zip(*parts, strict=True)):
            for node, code, parent in zip(nodes, codes, parents, strict=True):
                if node < 0:
                    assert code == parent == 0
                    numbered[user].append((-1, -1, -np.inf))
                    continue
                if question.level:
                    level, above, _ = numbered[user][parent]
                    assert level == question.level - 1
                    children = trie.expand(level, np.array([above]))
                    assert (node, code) in zip(children.node, children.code, strict=True)
                prefix = question.level, node, known[user][question.level, node]
                numbered[user].append(prefix)
                self.asked[user].append(prefix)


def score_items(trie: Trie, gains) -> np.ndarray:
    """(U, N) the score of every item, added up from the first code to the last."""
    leaf = np.arange(trie.n_items)
    paths = [leaf]
    for first_child in reversed(trie.first_child[1:]):
        paths.append(np.searchsorted(first_child, paths[-1], side="right") - 1)
    scores = np.zeros((len(gains[0]), trie.n_items), dtype=np.float32)
    for level, nodes in enumerate(reversed(paths)):
        scores += gains[level][:, nodes]
    by_item = np.empty_like(scores)
    by_item[:, trie.order] = scores
    return by_item


def rank_truly(scores, wanted: ItemFilter, k):
    """The k best legal items of one user's (N,) scores, equal ones by item_index."""
    legal = np.ones(len(scores), dtype=np.bool_) if wanted.allowed is None else wanted.allowed
    items = np.setdiff1d(np.flatnonzero(legal), wanted.excluded)
    return items[np.lexsort((items, -scores[items]))][:k]


@st.composite
def made_searches(draw):
    """(trie, driver, filters, k): few distinct scores, so that most choices cut through ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_levels, n_users = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    codes = rng.integers(0, draw(st.integers(1, 6)), (draw(st.integers(1, 60)), n_levels))
    trie = Trie.from_codes(rng.permutation(np.unique(codes, axis=0)))
    n_values = draw(st.sampled_from([1, 2, 4, 1000]))
    step = draw(st.sampled_from([0.0, 0.5]))
    gains = [
        -(rng.integers(0, n_values, (n_users, size)) * 0.25 + step).astype(np.float32)
        for size in trie.level_sizes[1:]
    ]
    filters = [_draw_filter(draw, rng, trie.n_items) for _ in range(n_users)]
    n_legal = min(len(rank_truly(np.zeros(trie.n_items), f, trie.n_items)) for f in filters)
    return trie, Driver(gains), filters, draw(st.integers(1, n_legal))


def _draw_filter(draw, rng, n_items):
    kept = int(rng.integers(n_items))
    excluded = rng.permutation(n_items)[: draw(st.integers(0, n_items))]
    allowed = rng.random(n_items) < 0.7 if draw(st.booleans()) else None
    if allowed is not None:
        allowed[kept] = True
    return ItemFilter(excluded[excluded != kept], allowed)

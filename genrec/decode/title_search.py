"""Search among titles: ids of different lengths, shared by items, asked about like codes.

Owns what differs from a search among codes: answers end at every length, and are collected while
longer ones go on; a prefix is dropped as soon as nothing below it can be an answer; scores may be
divided by length; several items may share an answer. Knows no model.

Source: with width and k large enough, the beams are those of Hugging Face's `generate`
(early_stopping=False). There an ended sequence counts only if it is among the best `width`
continuations of its step; here each is collected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from genrec.decode.beam import BestItems, count_within, keep_best
from genrec.decode.exact import PrefixRows
from genrec.decode.legal import LegalItems
from genrec.decode.request import Request
from genrec.decode.search import Dialogue, Question, add_gains, ask_children, lay_out
from genrec.decode.title_trie import TitleTrie
from genrec.types import FloatArray, IndexArray, RankedItems


@dataclass(frozen=True, slots=True)
class _Prefixes(PrefixRows):
    """Prefixes of tokens, users never falling, with what no answer below each can score above."""

    hope: FloatArray

    def join(self, other: Self) -> Self:
        """Both, by user."""
        both = PrefixRows.join(self, other)
        return both.take(np.argsort(both.user, kind="stable"))


class _TitleSearch:
    """The state of one search; `run` is the whole of it."""

    def __init__(self, trie: TitleTrie, request: Request) -> None:
        self._trie = trie
        self._request = request
        self._legal = LegalItems(trie, request.filters)
        n_users = len(request.prompts)
        self._answers = BestItems.begin_empty(n_users, request.k)
        self._bound = np.full(n_users, -np.inf, dtype=np.float32)
        self._evaluations = np.zeros(n_users, dtype=np.int64)
        self._n_numbers = 0

    def run(self) -> Dialogue:
        """Beams level by level; then, if it is to be exact, the best open prefixes of any level."""
        users = np.arange(len(self._request.prompts))
        zeros = np.zeros(len(users), dtype=np.int64)
        none = zeros.astype(np.float32)
        asked = _Prefixes(users, zeros + self._trie.root, zeros, zeros, none, none)
        waiting = asked.take(zeros[:0])
        is_beam = True
        while len(asked.user):
            question, scores = self._lay_out(asked)
            children = self._judge(question, scores, (yield question))
            if is_beam:
                asked, others = self._choose_beams(children)
                waiting = self._set_aside(waiting, others)
            else:
                waiting = self._set_aside(waiting, children)
            if self._request.search.exact and (not is_beam or not len(asked.user)):
                is_beam = False
                asked, waiting = self._choose_open(waiting)
        np.maximum.at(self._bound, waiting.user, waiting.hope)
        answers = self._answers
        assert (answers.item_index >= 0).all(), "k legal items exist and width >= k"
        return RankedItems(
            answers.item_index,
            answers.scores,
            self._bound < answers.worst,
            self._bound,
            self._evaluations,
        )

    def _lay_out(self, asked: _Prefixes) -> tuple[Question, FloatArray]:
        """The question about these prefixes, and the (U, W) scores of them."""
        beams, _ = lay_out(asked, len(self._request.prompts))
        nodes = beams.nodes
        self._evaluations += np.count_nonzero(nodes >= 0, axis=1)
        level = int(self._trie.find_depths(asked.node[:1])[0])
        question = ask_children(self._trie, self._legal, level, nodes, beams.codes, beams.parents)
        return question, beams.scores

    def _judge(self, question: Question, scores: FloatArray, gains: torch.Tensor) -> _Prefixes:
        """Collect the children that are whole titles, and give those that can still lead to one."""
        total = add_gains(scores, question, gains).cpu().numpy()
        whole = self._trie.are_complete(question.node)
        self._collect(question.user_row[whole], question.node[whole], total[whole])
        parent = self._n_numbers + question.column
        self._n_numbers += question.nodes.shape[1]
        open_ = ~whole
        node, score = question.node[open_], total[open_]
        found = _Prefixes(
            question.user_row[open_],
            node,
            question.code[open_],
            parent[open_],
            score,
            self._normalise(score, node, longest=True),
        )
        return self._drop_hopeless(found)

    def _collect(self, user: IndexArray, node: IndexArray, score: FloatArray) -> None:
        row, items, leaves = self._trie.list_items(node)
        stays = self._legal.is_legal(0, user[row], leaves)
        row, items = row[stays], items[stays]
        self._answers.add(user[row], items, self._normalise(score, node, longest=False)[row])

    def _normalise(self, score: FloatArray, node: IndexArray, *, longest: bool) -> FloatArray:
        """Scores over length to the penalty's power, the prefix's own or the longest below it.

        Log-probabilities only fall along a path and are at most 0, so that over the greatest length
        the score so far is a bound.
        """
        penalty = self._request.search.length_penalty
        if penalty == 0:
            return score
        length = self._trie.find_longest(node) if longest else self._trie.find_depths(node)
        return (score / length.astype(np.float64) ** penalty).astype(np.float32)

    def _drop_hopeless(self, found: _Prefixes) -> _Prefixes:
        """Those that may still lead to an answer; equal scores may, by a lower item_index."""
        hopeful = found.hope >= self._answers.worst[found.user]
        np.maximum.at(self._bound, found.user[~hopeful], found.hope[~hopeful])
        return found.take(hopeful)

    def _choose_beams(self, children: _Prefixes) -> tuple[_Prefixes, _Prefixes]:
        """The best `width` of each user by score, and the others."""
        return self._split_best(children, children.score)

    def _choose_open(self, waiting: _Prefixes) -> tuple[_Prefixes, _Prefixes]:
        """The best `width` of each user by hope, as far as its evaluations go, and the others."""
        waiting = self._drop_hopeless(waiting)
        left = self._request.search.max_evaluations - self._evaluations
        may = left[waiting.user] > 0
        chosen, others = self._split_best(waiting.take(may), waiting.hope[may])
        fits = count_within(chosen.user) < left[chosen.user]
        others = others.join(chosen.take(~fits)).join(waiting.take(~may))
        return chosen.take(fits), others

    def _split_best(self, among: _Prefixes, value: FloatArray) -> tuple[_Prefixes, _Prefixes]:
        if not len(among.user):
            return among, among
        kept = keep_best(
            torch.from_numpy(value),
            among.user,
            len(self._request.prompts),
            self._request.width,
            among.node,
        )
        rows = kept.index[kept.index >= 0]
        others = np.ones(len(among.user), dtype=np.bool_)
        others[rows] = False
        return among.take(rows), among.take(others)

    def _set_aside(self, waiting: _Prefixes, others: _Prefixes) -> _Prefixes:
        """Keep prefixes for later, or only what they could have been worth."""
        if self._request.search.exact:
            return waiting.join(others)
        np.maximum.at(self._bound, others.user, others.hope)
        return waiting


def search_titles(trie: TitleTrie, request: Request) -> Dialogue:
    """Search the trie for the k best items of each of the request's users.

    Scores are the summed log-probabilities of a title's tokens, its end among them, divided by
    their number to the power of `length_penalty`.
    """
    return _TitleSearch(trie, request).run()

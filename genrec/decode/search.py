"""Trie-constrained beam search that asks its questions and never sees a model.

Owns the search: which prefixes to ask about, which children stay, what is answered and what it is
worth. An engine drives it: it scores each question's children and sends the scores back, so the
same search runs over a model in memory, an offline vLLM, and an asynchronous one. Knows no token,
no model and no prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.decode.beam import BestItems, count_within, keep_best
from genrec.decode.diverse import Members, choose_fill, choose_members, split_evenly
from genrec.decode.exact import OpenPrefixes, Prefixes, PrefixRows
from genrec.decode.legal import LegalItems, PrefixTree
from genrec.decode.request import Request
from genrec.decode.trie import Trie
from genrec.errors import ModelError
from genrec.types import FloatArray, IndexArray, RankedItems


@dataclass(frozen=True, slots=True)
class Question:
    """Prefixes of one length, whose legal children want a score.

    A user's prefixes have numbers: the empty one is 0, and those of later questions count on by
    column, absent ones included. An engine that keeps a state for each prefix finds it by these.

    Attributes:
        level: how many codes each prefix has.
        nodes: (U, W) their nodes; -1 where a user has fewer than W.
        codes: (U, W) the last code of each; 0 at level 0 and where absent.
        parents: (U, W) the number of the prefix without its last code; 0 where absent.
        user_row: (C,) the user of each child; never falls.
        column: (C,) the prefix that it extends.
        node: (C,) its node on the next level.
        code: (C,) its last code.
    """

    level: int
    nodes: IndexArray
    codes: IndexArray
    parents: IndexArray
    user_row: IndexArray
    column: IndexArray
    node: IndexArray
    code: IndexArray

    def list_prefixes(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """The prefixes that are not absent, row by row, and which of them each child extends.

        Shapes:
            (P,) user and (P,) column of each prefix; (C,) its place in those for each child.
        """
        users, columns = np.nonzero(self.nodes >= 0)
        n_columns = self.nodes.shape[1]
        places = np.zeros(self.nodes.size, dtype=np.int64)
        places[users * n_columns + columns] = np.arange(len(users))
        return users, columns, places[self.user_row * n_columns + self.column]


Dialogue = Generator[Question, Tensor, RankedItems]
"""Yields questions, takes the (C,) float32 log-probability of each child after its prefix, at most
0, on any device, and returns the answers."""


@dataclass(frozen=True, slots=True)
class Beams:
    """The live prefixes of U users at one level; node is -1 where a user has fewer than W."""

    nodes: IndexArray
    codes: IndexArray
    parents: IndexArray
    scores: FloatArray

    def select(self, users: NDArray[np.bool_]) -> Beams:
        """The same for some users, none for the others."""
        stays = users[:, None]
        return Beams(
            np.where(stays, self.nodes, -1),
            np.where(stays, self.codes, 0),
            np.where(stays, self.parents, 0),
            self.scores,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its children's (C,) scores, and the numbers of the prefixes they extend."""

    question: Question
    scores: Tensor
    parents: IndexArray

    def list_children(self, rows: IndexArray | NDArray[np.bool_]) -> Prefixes:
        """Some of the children as prefixes."""
        question, user_row = self.question, self.question.user_row[rows]
        return Prefixes(
            user_row,
            question.node[rows],
            question.code[rows],
            self.parents[rows],
            self.scores.cpu().numpy()[rows],
            np.full(len(user_row), question.level + 1),
        )


def search_items(trie: Trie, request: Request) -> Dialogue:
    """Search the trie for the k best items of each of the request's users."""
    return _ItemSearch(trie, request).run()


class _ItemSearch:
    """The state of one search; `run` is the whole of it."""

    def __init__(self, trie: Trie, request: Request) -> None:
        self._trie = trie
        self._request = request
        self._legal = LegalItems(trie, request.filters)
        n_users = len(request.prompts)
        self._n_users = n_users
        self._bound = np.full(n_users, -np.inf, dtype=np.float32)
        self._evaluations = np.zeros(n_users, dtype=np.int64)
        self._n_numbers = 0
        self._open = OpenPrefixes(n_users) if request.search.exact else None

    def run(self) -> Dialogue:
        """Beams level by level, in groups if wanted; then what an exact answer needs."""
        root = np.zeros((self._n_users, 1), dtype=np.int64)
        beams = Beams(root, root, root, root.astype(np.float32))
        if self._request.search.groups > 1:
            best = yield from self._search_groups(beams)
        else:
            best = yield from self._search_beams(0, beams)
        assert (best.item_index >= 0).all(), "k legal items exist and width >= k: k were reached"
        if self._open is not None:
            yield from self._search_open(self._open, best)
        return RankedItems(
            best.item_index,
            best.scores,
            self._bound < best.worst,
            self._bound,
            self._evaluations,
        )

    def _search_beams(self, level: int, beams: Beams) -> Generator[Question, Tensor, BestItems]:
        """The best items that plain beams reach, which are at `level` now."""
        while level < self._trie.n_levels - 1:
            asked = yield from self._ask(level, beams)
            beams = self._keep_beams(asked)
            level += 1
        asked = yield from self._ask(level, beams)
        question = asked.question
        items = self._trie.items(question.node)
        best = keep_best(asked.scores, question.user_row, self._n_users, self._request.k, items)
        index = np.where(best.index < 0, -1, items[best.index])
        return BestItems(index, best.scores)

    def _keep_beams(self, asked: _Asked) -> Beams:
        """The best `width` children of each user; the others may be asked about later."""
        question = asked.question
        kept = keep_best(
            asked.scores, question.user_row, self._n_users, self._request.width, question.node
        )
        if self._open is None:
            self._bound = np.maximum(self._bound, kept.best_left_out)
        else:
            others = np.ones(len(question.node), dtype=np.bool_)
            others[kept.index[kept.index >= 0]] = False
            self._open.add(asked.list_children(others))
        absent = kept.index < 0
        return Beams(
            np.where(absent, -1, question.node[kept.index]),
            np.where(absent, 0, question.code[kept.index]),
            np.where(absent, 0, asked.parents[kept.index]),
            kept.scores,
        )

    def _search_open(
        self, open_: OpenPrefixes, best: BestItems
    ) -> Generator[Question, Tensor, None]:
        """Ask about open prefixes, best first, until none can hold a better item than the last."""
        most = self._request.search.max_evaluations
        while (chosen := open_.choose(best.worst, most - self._evaluations)) is not None:
            level = int(chosen.level[0])
            asked = yield from self._ask(level, lay_out(chosen, self._n_users)[0])
            found = asked.list_children(np.ones(len(asked.parents), dtype=np.bool_))
            if level == self._trie.n_levels - 1:
                best.add(found.user, self._trie.items(found.node), found.score)
            else:
                open_.add(found)
        self._bound = open_.bound

    def _search_groups(self, beams: Beams) -> Generator[Question, Tensor, BestItems]:
        """The best items that groups of beams reach, and plain beams where those reach too few."""
        search, width = self._request.search, self._request.width
        sizes = split_evenly(width, search.groups)
        holds = np.ones((self._n_users, 1, search.groups), dtype=np.bool_)
        plain: Beams | None = None
        for level in range(self._trie.n_levels - 1):
            asked = yield from self._ask(level, beams)
            question = asked.question
            members = choose_members(
                asked.scores.cpu().numpy(),
                question.user_row,
                question.node,
                holds[question.user_row, question.column],
                sizes,
                penalty=0.0 if level else search.diversity,
            )
            if not level:
                plain = self._keep_beams(asked)
            is_kept = np.count_nonzero(members, axis=1) > 0
            self._raise_bound(asked.list_children(~is_kept))
            beams, at = lay_out(asked.list_children(is_kept), self._n_users)
            holds = np.zeros((*beams.nodes.shape, search.groups), dtype=np.bool_)
            holds[at] = members[is_kept]
        asked = yield from self._ask(self._trie.n_levels - 1, beams)
        best = self._share_out(asked, holds)
        missing = best.item_index[:, -1] < 0
        if missing.any():
            assert plain is not None, "one level's only question is about all items"
            others = yield from self._search_beams(1, plain.select(missing))
            self._fill(best, *_list_items(others))
        return best

    def _share_out(self, asked: _Asked, holds: Members) -> BestItems:
        """The k items of each user, as evenly from the groups as they go, by score."""
        question, groups = asked.question, self._request.search.groups
        items, scores = self._trie.items(question.node), asked.scores.cpu().numpy()
        members = choose_members(
            scores,
            question.user_row,
            items,
            holds[question.user_row, question.column],
            split_evenly(self._request.k, groups),
            exclusive=True,
        )
        best = BestItems.begin_empty(self._n_users, self._request.k)
        rows = np.flatnonzero(members.any(axis=1))
        best.add(question.user_row[rows], items[rows], scores[rows])
        self._fill(best, question.user_row, items, scores)
        self._raise_bound(asked.list_children(~_are_held(best, question.user_row, items)))
        return best

    def _fill(self, best: BestItems, user: IndexArray, item: IndexArray, score: FloatArray) -> None:
        """Give users with fewer than k items the best of others."""
        is_new = ~_are_held(best, user, item)
        user, item, score = user[is_new], item[is_new], score[is_new]
        rows = choose_fill(score, user, item, np.count_nonzero(best.item_index < 0, axis=1))
        best.add(user[rows], item[rows], score[rows])

    def _raise_bound(self, left_out: Prefixes) -> None:
        np.maximum.at(self._bound, left_out.user, left_out.score)

    def _ask(self, level: int, beams: Beams) -> Generator[Question, Tensor, _Asked]:
        question = ask_children(
            self._trie, self._legal, level, beams.nodes, beams.codes, beams.parents
        )
        self._evaluations += np.count_nonzero(beams.nodes >= 0, axis=1)
        parents = self._n_numbers + question.column
        self._n_numbers += beams.nodes.shape[1]
        return _Asked(question, add_gains(beams.scores, question, (yield question)), parents)


def lay_out(prefixes: PrefixRows, n_users: int) -> tuple[Beams, tuple[IndexArray, IndexArray]]:
    """Prefixes as beams, users never falling, and the row and column of each."""
    user = prefixes.user
    column = count_within(user)
    at = user, column
    shape = (n_users, int(column.max()) + 1)
    nodes = np.full(shape, -1, dtype=np.int64)
    codes, parents = np.zeros((2, *shape), dtype=np.int64)
    scores = np.full(shape, -np.inf, dtype=np.float32)
    nodes[at], codes[at] = prefixes.node, prefixes.code
    parents[at], scores[at] = prefixes.parent, prefixes.score
    return Beams(nodes, codes, parents, scores), at


def _list_items(best: BestItems) -> tuple[IndexArray, IndexArray, FloatArray]:
    """User, item and score of all that there are."""
    users, places = np.nonzero(best.item_index >= 0)
    return users, best.item_index[users, places], best.scores[users, places]


def _are_held(best: BestItems, user: IndexArray, item: IndexArray) -> NDArray[np.bool_]:
    """Which items are among a user's best already."""
    held: NDArray[np.bool_] = (best.item_index[user] == item[:, None]).any(axis=1)
    return held


def drive_search(dialogue: Dialogue, answer: Callable[[Question], Tensor]) -> RankedItems:
    """What a search answers when its questions are answered in this way, one after the other."""
    question = next(dialogue)
    while True:
        try:
            question = dialogue.send(answer(question))
        except StopIteration as end:
            ranked: RankedItems = end.value
            return ranked


def join_batches(
    parts: Sequence[tuple[Sequence[int], RankedItems]], n_users: int, k: int
) -> RankedItems:
    """The answers of U users from those of batches, each given with its rows."""
    whole = RankedItems(
        item_index=np.full((n_users, k), -1, dtype=np.int64),
        scores=np.full((n_users, k), -np.inf, dtype=np.float32),
        certified=np.ones(n_users, dtype=np.bool_),
        bound=np.full(n_users, -np.inf, dtype=np.float32),
        evaluations=np.zeros(n_users, dtype=np.int64),
    )
    for rows, part in parts:
        for field in fields(RankedItems):
            found = getattr(part, field.name)
            if found.ndim == 1:
                getattr(whole, field.name)[rows] = found
            else:  # a batch may have been asked for fewer answers
                getattr(whole, field.name)[rows, : found.shape[1]] = found
    return whole


def ask_children(
    trie: PrefixTree,
    legal: LegalItems,
    level: int,
    nodes: IndexArray,
    codes: IndexArray,
    parents: IndexArray,
) -> Question:
    """The question for every legal extension of some prefixes; see `Question` for the shapes."""
    users, columns = np.nonzero(nodes >= 0)
    children = trie.expand(level, nodes[users, columns])
    row, node, code = children.parent_row, children.node, children.code
    if not legal.is_free:
        stays: NDArray[np.bool_] = legal.is_legal(level + 1, users[row], node)
        row, node, code = row[stays], node[stays], code[stays]
    return Question(level, nodes, codes, parents, users[row], columns[row], node, code)


def add_gains(scores: FloatArray, question: Question, gains: Tensor) -> Tensor:
    """The (C,) score of each child: its prefix's and its own.

    Raises:
        ModelError: a score that is not a number.
    """
    total = torch.from_numpy(scores[question.user_row, question.column]).to(gains.device) + gains
    if not bool(torch.isfinite(total).all()):
        raise ModelError(
            "the model gave a score that is not a finite number; its weights are broken, or "
            "overflow in half precision: load it with dtype=torch.float32"
        )
    return total

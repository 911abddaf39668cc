"""Trie-constrained beam search that asks its questions and never sees a model.

Owns the search: which prefixes to ask about, which children stay, what is answered and what it is
worth. An engine drives it: it scores each question's children and sends the scores back, so the
same search runs over a model in memory, an offline vLLM, and an asynchronous one. Knows no token,
no model and no prompt.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.decode.beam import keep_best
from genrec.decode.legal import LegalItems
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


Dialogue = Generator[Question, Tensor, RankedItems]
"""Yields questions, takes the (C,) float32 log-probability of each child after its prefix, at most
0, on any device, and returns the answers."""


@dataclass(frozen=True, slots=True)
class _Beams:
    """The live prefixes of U users at one level; node is -1 where a user has fewer than W."""

    nodes: IndexArray
    codes: IndexArray
    parents: IndexArray
    scores: FloatArray


def search_items(trie: Trie, request: Request) -> Dialogue:
    """Search the trie for the k best items of each of the request's users."""
    n_users = len(request.prompts)
    legal = LegalItems(trie, request.filters)
    root = np.zeros((n_users, 1), dtype=np.int64)
    beams = _Beams(root, root, root, root.astype(np.float32))
    bound = np.full(n_users, -np.inf, dtype=np.float32)
    evaluations = np.zeros(n_users, dtype=np.int64)
    first_number = 0  # of the prefixes that the latest question asks about
    for level in range(trie.n_levels):
        question = ask_children(trie, legal, level, beams.nodes, beams.codes, beams.parents)
        evaluations += np.count_nonzero(beams.nodes >= 0, axis=1)
        scores = add_gains(beams.scores, question, (yield question))
        if level == trie.n_levels - 1:
            break
        kept = keep_best(scores, question.user_row, n_users, request.width, question.node)
        bound = np.maximum(bound, kept.best_left_out)
        absent, chosen = kept.index < 0, kept.index
        beams = _Beams(
            nodes=np.where(absent, -1, question.node[chosen]),
            codes=np.where(absent, 0, question.code[chosen]),
            parents=np.where(absent, 0, first_number + question.column[chosen]),
            scores=kept.scores,
        )
        first_number += question.nodes.shape[1]
    items = trie.items(question.node)
    best = keep_best(scores, question.user_row, n_users, request.k, items)
    assert (best.index >= 0).all(), "k legal items exist and width >= k, so k were reached"
    return RankedItems(
        items[best.index], best.scores, bound < best.scores[:, -1], bound, evaluations
    )


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
    trie: Trie,
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

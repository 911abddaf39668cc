"""What a search looked at, for people to see.

Owns the record of one prompt's search: which prefixes it kept at each level, which it left, and
their scores. Watches the search's questions and answers from outside. Knows no model and no token.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from genrec.decode.search import Dialogue, Question
from genrec.decode.trie import Trie
from genrec.types import RankedItems


@dataclass(frozen=True, slots=True)
class TracedPrefix:
    """A prefix that a search scored.

    Attributes:
        codes: its codes.
        node: its node on its level of the trie.
        score: its log-probability, as the search ranks.
        kept: whether the search went on from it; of complete sequences, whether it is an answer.
    """

    codes: tuple[int, ...]
    node: int
    score: float
    kept: bool


class SearchTrace:
    """The record of one search over one prompt."""

    def __init__(self, *, most_left: int = 5) -> None:
        """Record nothing yet.

        Args:
            most_left: how many of the best prefixes that were not kept are shown at each level.
        """
        self.levels: list[list[TracedPrefix]] = []
        self._most_left = most_left
        self._codes: list[tuple[int, ...]] = []
        self._scores: list[float] = []
        self._asked: dict[int, dict[tuple[int, ...], TracedPrefix]] = {}

    def watch(self, dialogue: Dialogue, trie: Trie) -> Generator[Question, Tensor, RankedItems]:
        """The same dialogue, recorded as it goes; `levels` is filled when it ends.

        Args:
            dialogue: of one prompt.
            trie: that it searches.
        """
        opened: set[tuple[int, int]] = set()
        question = next(dialogue)
        while True:
            self._open(question, opened)
            gains = yield question
            self._take(question, gains.detach().float().cpu().numpy())
            try:
                question = dialogue.send(gains)
            except StopIteration as end:
                ranked: RankedItems = end.value
                self._close(opened, trie.leaves[ranked.item_index[0]].tolist())
                return ranked

    def _open(self, question: Question, opened: set[tuple[int, int]]) -> None:
        """Number the question's prefixes as `Question` says."""
        columns = zip(
            question.nodes[0].tolist(),
            question.codes[0].tolist(),
            question.parents[0].tolist(),
            strict=True,
        )
        for node, code, parent in columns:
            codes = (*self._codes[parent], code) if question.level and node >= 0 else ()
            self._codes.append(codes)
            found = self._asked.get(question.level, {}).get(codes)
            self._scores.append(0.0 if found is None else found.score)
            if node >= 0:
                opened.add((question.level, node))

    def _take(self, question: Question, gains: np.ndarray) -> None:
        first = len(self._codes) - question.nodes.shape[1]
        level = self._asked.setdefault(question.level + 1, {})
        for column, node, code, gain in zip(
            question.column.tolist(),
            question.node.tolist(),
            question.code.tolist(),
            gains.tolist(),
            strict=True,
        ):
            number = first + column
            codes, score = (*self._codes[number], code), self._scores[number] + gain
            level[codes] = TracedPrefix(codes, node, score, False)

    def _close(self, opened: set[tuple[int, int]], answers: list[int]) -> None:
        """Say what was kept; of the rest only the best are."""
        deepest = max(self._asked)
        for level in sorted(self._asked):
            found = sorted(self._asked[level].values(), key=lambda p: (-p.score, p.node))
            chosen = (
                set(answers)
                if level == deepest
                else {p.node for p in found if (level, p.node) in opened}
            )
            kept = [TracedPrefix(p.codes, p.node, p.score, True) for p in found if p.node in chosen]
            left = [p for p in found if p.node not in chosen][: self._most_left]
            self.levels.append(sorted([*kept, *left], key=lambda p: (-p.score, p.node)))

"""Full-catalogue ranking of held-out items: who is asked, what counts as an answer, what is kept.

Owns the loop over users and the check of every answer. Knows no system by name: each is a
`genrec.types.RanksItems`, or a ranking that was made beforehand. An answer that is no item, repeats
another or was not allowed keeps its place and never scores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genrec.data.dataset import HoldOut
from genrec.errors import CapacityError, DataError, join_problems
from genrec.eval.metrics import Metric, ValueArray, find_rank, pad_lists, score_users
from genrec.progress import show_progress
from genrec.types import IndexArray, RankedItems, RanksItems, RanksUsers

_NO_ANSWER = -1


@dataclass(frozen=True, slots=True)
class Question:
    """What every system is asked: rank `depth` items of the catalogue for each held-out user."""

    holdout: HoldOut
    n_items: int
    metrics: tuple[Metric, ...]
    exclude_seen: bool = True
    user_ids: tuple[str, ...] | None = None

    @property
    def depth(self) -> int:
        """The largest cutoff."""
        return max(metric.k for metric in self.metrics)

    @property
    def n_users(self) -> int:
        """How many users are asked about."""
        return len(self.holdout.user_index)


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system's answers and what they are worth, user by user.

    `target_rank` is the place of the user's first target from 1, 0 where it is not among the
    answers. `n_valid` of `n_answers` were real, distinct, allowed items; `seconds` is the time
    spent ranking, None for a ranking that was made beforehand.

    Shapes:
        ranked: (U, k), as answered.
        scores: (U,) float64 a metric.
        target_rank: (U,) int64.
    """

    name: str
    ranked: RankedItems
    scores: dict[Metric, ValueArray]
    target_rank: IndexArray
    n_answers: int
    n_valid: int
    seconds: float | None

    @property
    def valid_rate(self) -> float:
        """The share of the answers that were real, distinct, allowed items; 0 without answers."""
        return self.n_valid / self.n_answers if self.n_answers else 0.0


def sample_users(holdout: HoldOut, max_users: int | None, seed: int) -> IndexArray:
    """Rows of the held-out users to evaluate: all, or a seeded sample, in rising order."""
    n_users = len(holdout.user_index)
    if max_users is None or max_users >= n_users:
        return np.arange(n_users)
    chosen = np.random.default_rng(seed).choice(n_users, size=max_users, replace=False)
    return np.sort(chosen).astype(np.int64)


def take_users(holdout: HoldOut, rows: IndexArray) -> HoldOut:
    """The held-out users in these rows, in that order."""
    return replace(
        holdout,
        user_index=holdout.user_index[rows],
        histories=[holdout.histories[row] for row in rows],
        targets=[holdout.targets[row] for row in rows],
    )


def take_rankings(ranked: RankedItems, rows: IndexArray, depth: int) -> RankedItems:
    """These rows of a ranking, cut off at `depth`."""
    return RankedItems(
        ranked.item_index[rows, :depth], ranked.scores[rows, :depth], ranked.certified[rows]
    )


def evaluate_systems(
    question: Question,
    systems: Sequence[RanksItems],
    *,
    known: Mapping[str, RankedItems] | None = None,
    batch_size: int = 64,
) -> list[SystemResult]:
    """Every system's result, in the order given, then those of the rankings known beforehand.

    Args:
        question: users, catalogue, metrics.
        systems: what to ask.
        known: rankings by system name, row by row as `question.holdout`.
        batch_size: users asked about at once.

    Raises:
        DataError: no users, two systems of one name, another catalogue, or an answer of the wrong
            shape.
        CapacityError: a cutoff above the catalogue's size.
    """
    known = known or {}
    _check_question(question, systems, known)
    results = []
    for system in systems:
        started = time.monotonic()
        ranked = _ask_system(question, system, batch_size)
        results.append(
            score_ranking(question, system.name, ranked, seconds=time.monotonic() - started)
        )
    results.extend(score_ranking(question, name, ranked) for name, ranked in known.items())
    return results


def _check_question(
    question: Question, systems: Sequence[RanksItems], known: Mapping[str, RankedItems]
) -> None:
    if question.n_users == 0:
        raise DataError(
            "no user has both a held-out item and a history before it, so there is nothing to "
            "evaluate; check the split of the data"
        )
    if question.depth > question.n_items:
        raise CapacityError(
            f"a metric is cut off at {question.depth}, but the catalogue has {question.n_items:,} "
            f"items; choose cutoffs from 1 to {question.n_items}"
        )
    names = [system.name for system in systems] + list(known)
    problems = [
        f"{names.count(name)} systems are called {name!r}; give each its own name"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    problems += [
        f"{system.name} ranks a catalogue of {system.n_items:,} items, the data has "
        f"{question.n_items:,}; evaluate it on the data it was made from"
        for system in systems
        if system.n_items != question.n_items
    ]
    if problems:
        raise DataError(join_problems("these systems cannot be evaluated together", problems))


def _ask_system(question: Question, system: RanksItems, batch_size: int) -> RankedItems:
    histories = question.holdout.histories
    parts = []
    with show_progress(f"ranking with {system.name}", len(histories), unit="users") as advance:
        for start in range(0, len(histories), batch_size):
            batch = histories[start : start + batch_size]
            part = _rank_batch(question, system, slice(start, start + batch_size))
            expected = (len(batch), question.depth)
            if part.item_index.shape != expected or part.scores.shape != expected:
                raise DataError(
                    f"{system.name} answered with item_index {part.item_index.shape} and scores "
                    f"{part.scores.shape} where {expected} was asked for; fill rows up with -1"
                )
            parts.append(part)
            advance(len(batch))
    return RankedItems(
        np.concatenate([part.item_index for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.certified for part in parts]),
    )


def _rank_batch(question: Question, system: RanksItems, users: slice) -> RankedItems:
    histories, exclude_seen = question.holdout.histories[users], question.exclude_seen
    if question.user_ids is not None and isinstance(system, RanksUsers) and system.needs_users:
        user_ids = question.user_ids[users]
        return system.rank_users(user_ids, histories, question.depth, exclude_seen=exclude_seen)
    return system.rank_items(histories, question.depth, exclude_seen=exclude_seen)


def score_ranking(
    question: Question, name: str, ranked: RankedItems, *, seconds: float | None = None
) -> SystemResult:
    """What a ranking is worth; its invalid answers keep their place and never score."""
    valid = find_valid(
        ranked.item_index, question.holdout.histories, question.n_items, question.exclude_seen
    )
    counted = np.where(valid, ranked.item_index, _NO_ANSWER)
    short = question.depth - counted.shape[1]
    if short > 0:
        counted = np.pad(counted, ((0, 0), (0, short)), constant_values=_NO_ANSWER)
    targets = pad_lists(question.holdout.targets)
    return SystemResult(
        name=name,
        ranked=ranked,
        scores=score_users(counted, targets, question.metrics),
        target_rank=find_rank(counted, targets),
        n_answers=int((ranked.item_index != _NO_ANSWER).sum()),
        n_valid=int(valid.sum()),
        seconds=seconds,
    )


def find_valid(
    ranked: IndexArray, histories: Sequence[IndexArray], n_items: int, exclude_seen: bool
) -> NDArray[np.bool_]:
    """Which answers are items of the catalogue, not given before in their list, and allowed.

    Shapes:
        ranked: (U, k) int64.
        result: (U, k) bool.
    """
    valid = (ranked >= 0) & (ranked < n_items)
    order = np.argsort(ranked, axis=1, kind="stable")
    ordered = np.take_along_axis(ranked, order, axis=1)
    repeated = np.zeros_like(valid)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    np.put_along_axis(valid, order, np.take_along_axis(valid, order, axis=1) & ~repeated, axis=1)
    if exclude_seen:
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        seen = rows * n_items + np.concatenate(histories)
        cells = np.arange(len(ranked))[:, None] * n_items + np.where(valid, ranked, 0)
        valid &= ~np.isin(cells, seen)
    return valid

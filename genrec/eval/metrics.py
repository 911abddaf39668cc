"""Ranking metrics as pure functions of (ranked, relevant, k), one value per user.

Owns what a metric is and how it is computed, and refuses to know who ranked, from which data, or
what becomes of the values: means, intervals and tests live in `genrec.eval.statistics`. Items are
compared by index; the lists are as long as the caller made them, best first.

Shapes:
    ranked: (U, K) integers, best first; negative where a user has no further answer.
    relevant: (U, R) integers, the user's targets in any order; negative where there are fewer.
    result: (U,) float64, between 0 and 1; 0 for a user without an answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.errors import DataError, RecipeError
from genrec.types import IndexArray

ValueArray = NDArray[np.float64]
HitMatrix = NDArray[np.bool_]

_USERS_AT_ONCE = 16_384  # a block of users whose answers stay in the cache


def pad_lists(lists: Sequence[IndexArray]) -> IndexArray:
    """The lists as rows of one matrix, filled up with -1.

    Args:
        lists: U integer arrays of any lengths.

    Shapes:
        result: (U, R) int64, R the longest list's length and at least 1.
    """
    lengths = np.array([len(row) for row in lists], dtype=np.int64)
    padded = np.full((len(lists), max(1, int(lengths.max(initial=0)))), -1, dtype=np.int64)
    inside = np.arange(padded.shape[1]) < lengths[:, None]
    if lengths.sum():
        padded[inside] = np.concatenate([row for row in lists if len(row)])
    return padded


def find_hits(ranked: IndexArray, relevant: IndexArray) -> HitMatrix:
    """Which places of each list hold a target; a target counts at its first place only.

    Args:
        ranked: (U, K) answers.
        relevant: (U, R) targets.

    Shapes:
        result: (U, K) bool.
    """
    hits = np.zeros(ranked.shape, dtype=np.bool_)
    if ranked.shape[1] == 0:
        return hits
    for start in range(0, len(ranked), _USERS_AT_ONCE):
        block = slice(start, start + _USERS_AT_ONCE)
        _mark_hits(hits[block], ranked[block], relevant[block])
    return hits


def _mark_hits(hits: HitMatrix, ranked: IndexArray, relevant: IndexArray) -> None:
    for targets in relevant.T:
        users = np.flatnonzero(targets >= 0)
        same = ranked[users] == targets[users, None]
        place = same.argmax(axis=1)
        found = same[np.arange(len(users)), place]
        hits[users[found], place[found]] = True


def find_rank(ranked: IndexArray, relevant: IndexArray) -> IndexArray:
    """The place, from 1, of each user's first target; 0 where the list holds none."""
    hits = find_hits(ranked, relevant)
    if hits.shape[1] == 0:
        return np.zeros(len(hits), dtype=np.int64)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def _count_relevant(relevant: IndexArray) -> IndexArray:
    """How many distinct targets each user has, at least one.

    Raises:
        DataError: a user without a target, for whom no metric is defined.
    """
    ordered = np.sort(relevant, axis=1)
    fresh = ordered >= 0
    fresh[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    counts: IndexArray = fresh.sum(axis=1, dtype=np.int64)
    if (counts == 0).any():
        raise DataError(
            f"{int((counts == 0).sum())} of {len(counts)} users have no target, so no metric is "
            f"defined for them; leave users without a target out before scoring"
        )
    return counts


def _hit_at(hits: HitMatrix, n_relevant: IndexArray, k: int) -> ValueArray:
    del n_relevant
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def _recall_at(hits: HitMatrix, n_relevant: IndexArray, k: int) -> ValueArray:
    return np.asarray(hits[:, :k].sum(axis=1) / n_relevant, dtype=np.float64)


def _ndcg_at(hits: HitMatrix, n_relevant: IndexArray, k: int) -> ValueArray:
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.minimum(n_relevant, k) - 1]
    # Hits are few: summing those takes a twentieth of the time of a product with all of U x k.
    users, places = np.nonzero(hits[:, :k])
    gained = np.bincount(users, weights=discounts[places], minlength=len(hits))
    return np.asarray(gained / ideal, dtype=np.float64)


def _reciprocal_rank_at(hits: HitMatrix, n_relevant: IndexArray, k: int) -> ValueArray:
    del n_relevant
    top = hits[:, :k]
    return np.where(top.any(axis=1), 1.0 / (top.argmax(axis=1) + 1), 0.0)


_Measure = Callable[[HitMatrix, IndexArray, int], ValueArray]
_MEASURES: dict[str, _Measure] = {
    "HR": _hit_at,
    "Recall": _recall_at,
    "NDCG": _ndcg_at,
    "MRR": _reciprocal_rank_at,
}
_ALIASES = {"hit": "HR", "success": "HR", "r": "Recall", "n": "NDCG", "rr": "MRR"}


@dataclass(frozen=True, slots=True, order=True)
class Metric:
    """A metric as a value: it prints as it parses (`NDCG@10`), compares and hashes."""

    name: str
    k: int

    def __post_init__(self) -> None:
        """Refuse a name that is not known and a cutoff below 1."""
        if self.name not in _MEASURES or self.k < 1:
            raise _explain_metric(f"{self.name}@{self.k}")

    def __str__(self) -> str:
        """`NAME@k`, which `parse` reads back."""
        return f"{self.name}@{self.k}"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric that `NAME@k` names, in any case; nDCG@10 and R@10 are understood too.

        Raises:
            RecipeError: the name is unknown, or the cutoff is no whole number from 1 up.
        """
        name, at, cutoff = text.strip().partition("@")
        known = {known.lower(): known for known in _MEASURES} | _ALIASES
        # isascii: int() would also take the digits of other scripts, which do not print as parsed
        if not at or name.lower() not in known or not (cutoff.isascii() and cutoff.isdigit()):
            raise _explain_metric(text)
        return cls(known[name.lower()], int(cutoff))


def _explain_metric(text: str) -> RecipeError:
    name = text.strip().partition("@")[0]
    close = difflib.get_close_matches(name.upper(), [known.upper() for known in _MEASURES], n=1)
    names = {known.upper(): known for known in _MEASURES}
    hint = f"did you mean {names[close[0]]}@10? " if close else ""
    return RecipeError(
        f"metric {text!r} is not known; {hint}A metric is written NAME@k with NAME one of "
        f"{', '.join(_MEASURES)} and k a whole number from 1, as in NDCG@10"
    )


def score_users(
    ranked: IndexArray, relevant: IndexArray, metrics: Iterable[Metric]
) -> dict[Metric, ValueArray]:
    """Each metric's value for each user; the targets are looked up once for all metrics.

    Args:
        ranked: (U, K) answers, K at least the largest cutoff.
        relevant: (U, R) targets.
        metrics: what to compute.

    Raises:
        DataError: fewer answers a user than a cutoff, or a user without a target.
    """
    wanted = list(metrics)
    deepest = max((metric.k for metric in wanted), default=0)
    if len(ranked) != len(relevant):
        raise DataError(
            f"{len(ranked)} rankings cannot be scored against {len(relevant)} users' targets; "
            f"row u of both must be the same user"
        )
    if ranked.shape[1] < deepest:
        raise DataError(
            f"the rankings are {ranked.shape[1]} long, too short for a cutoff of {deepest}; "
            f"rank deeper, or fill the rows up with -1 where the catalogue is that small"
        )
    hits = find_hits(ranked[:, :deepest], relevant)
    n_relevant = _count_relevant(relevant)
    return {metric: _MEASURES[metric.name](hits, n_relevant, metric.k) for metric in wanted}


def hit_rate(ranked: IndexArray, relevant: IndexArray, k: int) -> ValueArray:
    """1 where any target is among the first k answers, else 0.

    Source: Deshpande & Karypis, Item-Based Top-N Recommendation Algorithms, TOIS 2004, section
        5.2 (hit rate); `Success@k` in TREC.
    """
    return _score_one("HR", ranked, relevant, k)


def recall(ranked: IndexArray, relevant: IndexArray, k: int) -> ValueArray:
    """The share of a user's distinct targets among the first k answers.

    Divided by the number of targets, also where it exceeds k (TREC's `R@k`); some libraries divide
    by min(k, targets) instead. With one target a user it equals the hit rate.

    Source: Manning, Raghavan & Schuetze, Introduction to Information Retrieval, 2008, section 8.4.
    """
    return _score_one("Recall", ranked, relevant, k)


def ndcg(ranked: IndexArray, relevant: IndexArray, k: int) -> ValueArray:
    """Discounted gain of the first k answers over the best that k answers could gain.

    Gains are 0 or 1, the discount of place i is 1 / log2(i + 1), and the ideal list holds
    min(k, targets) targets.

    Source: Jaervelin & Kekaelaeinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002,
        with the discount of trec_eval's `ndcg_cut`, which the field uses.
    """
    return _score_one("NDCG", ranked, relevant, k)


def reciprocal_rank(ranked: IndexArray, relevant: IndexArray, k: int) -> ValueArray:
    """1 over the place of the first target, 0 where it is not among the first k answers.

    Source: Voorhees, The TREC-8 Question Answering Track Report, 1999; cut off at k.
    """
    return _score_one("MRR", ranked, relevant, k)


def _score_one(name: str, ranked: IndexArray, relevant: IndexArray, k: int) -> ValueArray:
    metric = Metric(name, k)
    return score_users(ranked, relevant, [metric])[metric]

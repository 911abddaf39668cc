"""Recommenders that only count: popularity and item-to-item Markov chains.

Owns the counting and the full ranking that follows from it; both meet `genrec.types.RanksItems`.
Knows histories of item indices and nothing of text, models or metrics. In this field such counts
have matched published neural rows, so every report carries them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from scipy import sparse

from genrec.errors import CapacityError, DataError, RecipeError, UnknownItemError
from genrec.types import FloatArray, IndexArray, RankedItems, RanksItems

Ties = Literal["popularity", "random"]
FitBaseline = Callable[..., RanksItems]
"""`fit(sequences, n_items, seed=...)`: a system that has learned from the users' sequences."""


class Popularity:
    """Ranks items by how often anybody chose them; the same list for all, less what was seen."""

    name: str = "popularity"

    def __init__(self, counts: IndexArray, *, seed: int = 0) -> None:
        """Rank by counts.

        Args:
            counts: how often each item was chosen.
            seed: orders items that were chosen equally often.

        Shapes:
            counts: (N,) int64.
        """
        self._counts = counts
        self._order = np.argsort(_rank_ties(counts, seed))[::-1]

    @classmethod
    def fit(cls, sequences: Sequence[IndexArray], n_items: int, *, seed: int = 0) -> Self:
        """Popularity counted over all of `sequences`.

        Args:
            sequences: each user's items, oldest first.
            n_items: size of the catalogue.
            seed: orders items that were chosen equally often.

        Raises:
            DataError: nothing to count.
            UnknownItemError: an index outside the catalogue.
        """
        items, _ = _flatten(sequences, n_items)
        return cls(np.bincount(items, minlength=n_items).astype(np.int64), seed=seed)

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return len(self._counts)

    def rank_items(
        self, histories: Sequence[IndexArray], k: int, *, exclude_seen: bool = True
    ) -> RankedItems:
        """Rank the catalogue for each history; see `RanksItems.rank_items`."""
        check_request(histories, k, self.n_items)
        item_index = np.full((len(histories), k), -1, dtype=np.int64)
        for row, history in enumerate(histories):
            seen = np.unique(history) if exclude_seen else history[:0]
            top = self._order[: k + len(seen)]
            kept = top[~np.isin(top, seen)][:k]
            item_index[row, : len(kept)] = kept
        scores = np.where(item_index >= 0, self._counts[item_index], -np.inf).astype(np.float32)
        return RankedItems(item_index, scores, np.ones(len(histories), dtype=np.bool_))


class Markov:
    """Ranks items by how often they followed a user's latest items in others' sequences.

    Each pair of items at most `window` places apart in a sequence counts as a transition, times
    `decay` for each place further apart. A row of transitions is divided by its sum + 1, so that
    rows seen rarely weigh less. A user's score of an item is the sum over the latest items, the
    latest first, of query weight times transition. Items that nothing leads to follow with score 0.

    Source: first-order item-to-item Markov chains as in Rendle et al., Factorizing Personalized
        Markov Chains, WWW 2010, section 4, counted instead of factorised; window, decay, query
        weights and the + 1 are those of genrec's published counting baseline.
    """

    name: str = "markov"

    def __init__(
        self,
        transitions: sparse.csr_array,
        counts: IndexArray,
        *,
        query_weights: Sequence[float],
        ties: Ties,
        seed: int,
    ) -> None:
        """Rank by transitions that are counted already; `fit` counts them."""
        self._transitions = transitions
        self._query_weights = np.asarray(query_weights, dtype=np.float64)
        tie_order = counts if ties == "popularity" else np.zeros_like(counts)
        self._ties = _rank_ties(tie_order, seed)
        self._fallback = np.argsort(self._ties)[::-1]

    @classmethod
    def fit(
        cls,
        sequences: Sequence[IndexArray],
        n_items: int,
        *,
        window: int = 3,
        decay: float = 0.5,
        query_weights: Sequence[float] = (1.0, 0.5, 0.33, 0.25, 0.2),
        ties: Ties = "popularity",
        seed: int = 0,
    ) -> Self:
        """Transitions counted over all of `sequences`.

        Args:
            sequences: each user's items, oldest first.
            n_items: size of the catalogue.
            window: how many places apart two items may be.
            decay: weight of one place further apart.
            query_weights: of a history's items, the latest first; older items do not count.
            ties: how items of equal score are ordered, those without a score among them: by
                popularity in `sequences`, or at random.
            seed: orders what is still equal; the order is the same for all users.

        Raises:
            DataError: nothing to count.
            UnknownItemError: an index outside the catalogue.
        """
        items, owners = _flatten(sequences, n_items)
        transitions = _count_transitions(items, owners, n_items, window=window, decay=decay)
        counts = np.bincount(items, minlength=n_items).astype(np.int64)
        return cls(transitions, counts, query_weights=query_weights, ties=ties, seed=seed)

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return len(self._ties)

    def rank_items(
        self, histories: Sequence[IndexArray], k: int, *, exclude_seen: bool = True
    ) -> RankedItems:
        """Rank the catalogue for each history; see `RanksItems.rank_items`."""
        check_request(histories, k, self.n_items)
        item_index = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        led_to = self._score_items(histories) if histories else sparse.csr_array((0, self.n_items))
        for row, history in enumerate(histories):
            seen = np.unique(history) if exclude_seen else history[:0]
            cells = slice(led_to.indptr[row], led_to.indptr[row + 1])
            items, values = self._select_top(led_to.indices[cells], led_to.data[cells], seen, k)
            item_index[row, : len(items)] = items
            scores[row, : len(items)] = values
        return RankedItems(item_index, scores, np.ones(len(histories), dtype=np.bool_))

    def _score_items(self, histories: Sequence[IndexArray]) -> sparse.csr_array:
        """(U, N) scores above 0; in a row of a few hundred, the rest of the catalogue stays out."""
        latest = [history[::-1][: len(self._query_weights)] for history in histories]
        lengths = [len(items) for items in latest]
        rows = np.repeat(np.arange(len(latest)), lengths)
        weights = np.concatenate([self._query_weights[:length] for length in lengths])
        query = sparse.csr_array(
            (weights, (rows, np.concatenate(latest))), shape=(len(latest), self.n_items)
        )
        return sparse.csr_array(query @ self._transitions)

    def _select_top(
        self, items: IndexArray, scores: FloatArray, seen: IndexArray, k: int
    ) -> tuple[IndexArray, FloatArray]:
        """One user's k best: those with a score, then the others in the order of ties."""
        allowed = ~np.isin(items, seen)
        items, scores = items[allowed].astype(np.int64), scores[allowed].astype(np.float32)
        best = np.lexsort((self._ties[items], scores))[::-1][:k]
        items, scores = items[best], scores[best]
        if len(items) < k:
            taken = np.concatenate([items, seen])
            rest = self._fallback[: k + len(taken)]
            rest = rest[~np.isin(rest, taken)][: k - len(items)]
            items = np.concatenate([items, rest])
            scores = np.concatenate([scores, np.zeros(len(rest), dtype=np.float32)])
        return items, scores


BASELINES: Mapping[str, FitBaseline] = {"popularity": Popularity.fit, "markov": Markov.fit}


def check_request(histories: Sequence[IndexArray], k: int, n_items: int) -> None:
    """Raise unless `RanksItems.rank_items` can be answered.

    Raises:
        CapacityError: k is below 1 or above the catalogue's size.
        DataError: a history is empty.
        UnknownItemError: a history holds an index outside the catalogue.
    """
    if not 1 <= k <= n_items:
        raise CapacityError(
            f"k={k} answers were asked for, but the catalogue has {n_items:,} items; "
            f"choose k from 1 to {n_items}"
        )
    for row, history in enumerate(histories):
        if len(history) == 0:
            raise DataError(
                f"history {row} is empty; it needs at least one item, so leave such users out"
            )
        _check_indices(history, n_items, f"history {row}")


def _check_indices(items: IndexArray, n_items: int, what: str) -> None:
    outside = items[(items < 0) | (items >= n_items)]
    if len(outside):
        raise UnknownItemError(
            f"{what} holds item_index {int(outside[0])}, outside 0..{n_items - 1}; "
            f"indices must come from the same catalogue"
        )


def _flatten(sequences: Sequence[IndexArray], n_items: int) -> tuple[IndexArray, IndexArray]:
    """All items one after the other, and the number of the sequence each belongs to."""
    lengths = [len(sequence) for sequence in sequences]
    if sum(lengths) == 0:
        raise DataError("the baselines have no training interactions to count; check the split")
    items = np.concatenate([sequence for sequence in sequences if len(sequence)])
    _check_indices(items, n_items, "a training sequence")
    return items.astype(np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _count_transitions(
    items: IndexArray, owners: IndexArray, n_items: int, *, window: int, decay: float
) -> sparse.csr_array:
    if window < 1 or not 0.0 < decay <= 1.0:
        raise RecipeError(
            f"markov window={window}, decay={decay}: the window must be at least 1 and the decay "
            f"above 0 and at most 1"
        )
    total = sparse.csr_array((n_items, n_items), dtype=np.float64)
    for distance in range(1, window + 1):
        same = owners[:-distance] == owners[distance:]
        pairs = (items[:-distance][same], items[distance:][same])
        weights = np.full(len(pairs[0]), decay ** (distance - 1))
        total = total + sparse.csr_array((weights, pairs), shape=(n_items, n_items))
    sums = np.asarray(total.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array(1.0 / (sums + 1.0)) @ total)


def _rank_ties(counts: IndexArray, seed: int) -> IndexArray:
    """Each item's place, from 0, when ordered by count upwards; equal counts in seeded order."""
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    places = np.empty(len(counts), dtype=np.int64)
    places[np.lexsort((shuffled, counts))] = np.arange(len(counts))
    return places

"""Records that cross from one part of genrec to another.

Owns plain frozen values and the Protocol that every recommender meets. Knows no file format, no
tensor library and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be recommended, with the text that describes it."""

    item_id: str
    title: str = ""
    brand: str = ""
    categories: str = ""
    description: str = ""
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Interaction:
    """One user's choice of one item; the timestamp is in seconds since 1970, UTC."""

    user_id: str
    item_id: str
    timestamp: float | None = None
    rating: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What one user chose, oldest first."""

    user_id: str
    item_ids: tuple[str, ...]


Unknown = Literal["error", "skip"]


@dataclass(frozen=True, slots=True, eq=False)
class Filters:
    """What a request wants to be answered with; every condition that is given must hold.

    Attributes:
        allow: ids of the only items that may be answered; None allows all.
        deny: ids of items that may not be answered.
        categories: names, upper or lower case; an item needs at least one of them anywhere in its
            category path.
        mask: any other condition, over item_index.

    Shapes:
        mask: (N,) bool.
    """

    allow: Sequence[str] | None = None
    deny: Sequence[str] = ()
    categories: Sequence[str] = ()
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One answer: an item that exists, its rank (from 1) and its score (higher is better)."""

    item_id: str
    rank: int
    score: float
    title: str = ""
    sid: str = ""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric's mean over users with its bootstrap interval."""

    metric: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RankedItems:
    """Ranked answers for a batch of users, best first.

    Shapes:
        item_index: (U, k) int64, dense catalogue rows; -1 where a user has fewer than k answers.
        scores: (U, k) float32, falling along a row; -inf where item_index is -1.
        certified: (U,) bool, True where no unexplored item can score above the last answer.
        bound: (U,) float32, the score that no unexplored item can exceed, -inf where none is left
            unexplored; None from a system that does not search.
        evaluations: (U,) int64, how many prefixes the model was asked about; None likewise.
    """

    item_index: IndexArray
    scores: FloatArray
    certified: NDArray[np.bool_]
    bound: FloatArray | None = None
    evaluations: IndexArray | None = None


@runtime_checkable
class RanksItems(Protocol):
    """What the Recommender and every baseline share; the contract tests hold them to it."""

    @property
    def name(self) -> str:
        """The system's name in reports."""
        ...

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        ...

    def rank_items(
        self, histories: Sequence[IndexArray], k: int, *, exclude_seen: bool = True
    ) -> RankedItems:
        """Rank the catalogue for each history.

        Args:
            histories: U arrays of item_index, oldest first, each at least one long.
            k: answers a user.
            exclude_seen: leave the history's own items out of its answers.

        Raises:
            CapacityError: k is below 1 or above the catalogue's size.
            UnknownItemError: a history holds an index outside the catalogue.
            DataError: a history is empty.
        """
        ...


@runtime_checkable
class RanksUsers(RanksItems, Protocol):
    """A system that can be told whose histories it ranks for, and may need to be."""

    @property
    def needs_users(self) -> bool:
        """Whether its answers depend on who the user is."""
        ...

    def rank_users(
        self,
        user_ids: Sequence[str],
        histories: Sequence[IndexArray],
        k: int,
        *,
        exclude_seen: bool = True,
    ) -> RankedItems:
        """Rank the catalogue for each user with that history; see `RanksItems.rank_items`."""
        ...

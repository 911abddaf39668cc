"""What a search has scored and not gone on from, best first: the frontier of an exact search.

Owns which prefixes are asked about next, and what is known of those that never are: as
log-probabilities only fall along a path, no item below a prefix scores above it. Knows no model and
no trie.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from genrec.decode.beam import count_within
from genrec.types import FloatArray, IndexArray

# Prefixes of one level that a user asks about at once. On 2 cores 16 tokens of a 0.6B model took
# hardly longer than one; more would ask about prefixes that a better k-th answer makes needless.
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class PrefixRows:
    """P prefixes with their scores, in flat arrays.

    Attributes:
        user: (P,) whose they are.
        node: (P,) in the trie.
        code: (P,) the last code.
        parent: (P,) the number of the prefix without it, as `search.Question` counts.
        score: (P,) float32, the log-probability.
    """

    user: IndexArray
    node: IndexArray
    code: IndexArray
    parent: IndexArray
    score: FloatArray

    def take(self, rows: IndexArray | NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def join(self, other: Self) -> Self:
        """These and others."""
        names = [field.name for field in fields(self)]
        return type(self)(*(np.append(getattr(self, name), getattr(other, name)) for name in names))


@dataclass(frozen=True, slots=True)
class Prefixes(PrefixRows):
    """Prefixes of codes, with (P,) how many codes each has."""

    level: IndexArray


class OpenPrefixes:
    """The prefixes of U users that nobody has asked about yet."""

    def __init__(self, n_users: int) -> None:
        """None yet."""
        none = np.empty(0, dtype=np.int64)
        self._open = Prefixes(none, none, none, none, none.astype(np.float32), none)
        self._bound = np.full(n_users, -np.inf, dtype=np.float32)

    @property
    def bound(self) -> FloatArray:
        """(U,) the best score of a prefix that was never asked about, -inf where there is none."""
        bound = self._bound.copy()
        np.maximum.at(bound, self._open.user, self._open.score)
        return bound

    def add(self, found: Prefixes) -> None:
        """Take prefixes that may be asked about later."""
        self._open = self._open.join(found)

    def choose(self, worst: FloatArray, n_left: IndexArray) -> Prefixes | None:
        """The prefixes to ask about next, all of one level; None when every user is done.

        A user is done when no open prefix reaches the score of the last answer, or when nothing
        may be asked any more. The others wait until it is the turn of their best prefix's level.

        Args:
            worst: (U,) the score of the last answer, -inf while there are fewer than k. An equal
                prefix stays open: below it may be an equal item of a lower item_index.
            n_left: (U,) how many prefixes each user may still ask about.
        """
        place = self._sort_hopeful(worst, n_left)
        among = self._open
        if not len(among.user):
            return None
        firsts = place == 0
        wanted = among.level[firsts]
        # The level that most users wait for; of equals the deepest, which is nearest to answers.
        level = wanted.max() - np.argmax(np.bincount(wanted)[::-1])
        waits = np.ones(len(worst), dtype=np.bool_)
        waits[among.user[firsts][wanted == level]] = False
        chosen = (among.level == level) & ~waits[among.user] & (place < _AT_ONCE)
        self._open = among.take(~chosen)
        return among.take(chosen)

    def _sort_hopeful(self, worst: FloatArray, n_left: IndexArray) -> IndexArray:
        """Keep what may still be asked about, by user, best first: the place of each in its user's.

        Of equal scores the deepest comes first. What has as many better ones before it as may still
        be asked about is never reached.
        """
        self._drop(self._open.score < worst[self._open.user])
        among = self._open
        order = np.lexsort((among.node, -among.level, -among.score, among.user))
        self._open = among.take(order)
        user = self._open.user
        place = count_within(user)
        reachable = place < n_left[user]
        self._drop(~reachable)
        return place[reachable]

    def _drop(self, rows: NDArray[np.bool_]) -> None:
        """Forget prefixes, but not what they could have been worth."""
        np.maximum.at(self._bound, self._open.user[rows], self._open.score[rows])
        self._open = self._open.take(~rows)

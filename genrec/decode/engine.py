"""What every decoding engine promises, and the words in which it is asked.

Owns the Protocol and the meaning of its arguments. Knows no model, and checks nothing: that is
`request`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrec.decode.trie import Trie
from genrec.types import IndexArray, RankedItems

Normalize = Literal["vocab", "level", "child"]


def _nothing() -> IndexArray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Search:
    """How the items are searched for, the same for every prompt of a call.

    Attributes:
        width: beams a prompt, at least k; None searches with 2.5 k.
        normalize: what a code's probability is relative to: all tokens of the vocabulary ("vocab",
            what LC-Rec, MiniOneRec and constrained `generate` rank by), the codes of its level
            ("level"), or the legal codes after its prefix ("child", as in GRID).
        exact: go on after the beams, best prefix first, until no unexplored item can score above
            the last answer.
        max_evaluations: how many prefixes a prompt an exact search evaluates before it gives up and
            says that its answer is not certified.
        groups: groups of beams that each see what earlier groups chose for the first code
            (Vijayakumar et al. 2016, with the penalty on the first code only); 1 is plain search.
        diversity: what a first code loses for each earlier group that chose it, in log-probability;
            of no effect with one group.
        length_penalty: for ids of different lengths, scores are divided by length to this power; 0
            compares sums, 1 means. Codes of a fixed length are not affected.
    """

    width: int | None = None
    normalize: Normalize = "vocab"
    exact: bool = False
    max_evaluations: int = 2000
    groups: int = 1
    diversity: float = 0.0
    length_penalty: float = 0.0


PLAIN = Search()


@dataclass(frozen=True, slots=True, eq=False)
class ItemFilter:
    """What one prompt may be answered with.

    Attributes:
        excluded: item_index that it may not be answered with; best for few.
        allowed: a mask over all items; None allows all. Prompts that share one array object share
            the work of it, and a read-only one (`setflags(write=False)`) is worked through once for
            as long as it lives, so a category's mask is best made once.
        only: item_index of the only items that it may be answered with, where they are few: of many
            items nothing but these is looked at; None does not restrict.

    Shapes:
        excluded, only: any number of int64; allowed: (N,) bool.
    """

    excluded: IndexArray = field(default_factory=_nothing)
    allowed: NDArray[np.bool_] | None = None
    only: IndexArray | None = None


@runtime_checkable
class Engine(Protocol):
    """Ranks the items of one catalogue after a prompt.

    Every engine passes the contract in tests/contracts/engine_contract.py.
    """

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        ...

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt.

        Among answers of one score the lower item_index comes first. A request gives the same answer
        alone and in a batch.

        Args:
            prompts: U token id sequences, each at least one long.
            k: answers a prompt.
            search: how to search.
            filters: for each prompt what it may be answered with; None allows everything.

        Raises:
            CapacityError: k or width below 1, k above the items that a prompt may be answered with,
                or width below k.
            DataError: an empty or overlong prompt, a token outside the vocabulary, or lists that do
                not match.
            UnknownItemError: an excluded item_index outside the catalogue.
            DecodeError: values of `search` that mean nothing.
            ModelError: the model gave a score that is not a number.
        """
        ...


@runtime_checkable
class SwapsTrie(Engine, Protocol):
    """An engine over semantic IDs whose items can change while it runs."""

    @property
    def trie(self) -> Trie:
        """The legal code sequences."""
        ...

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        ...

    def replace_trie(self, trie: Trie) -> Self:
        """An engine for other items over the same weights; this one goes on.

        Raises:
            ModelError: codes that there is no token for.
        """
        ...

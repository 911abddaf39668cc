"""What every decoding engine promises, and the checks on input that they share.

Owns the Protocol, the meaning of its arguments and the errors for bad ones. Knows no model: an
engine says what it can take in an `EngineLimits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from genrec.errors import CapacityError, DataError, DecodeError, UnknownItemError, join_problems
from genrec.types import IndexArray, RankedItems

Normalize = Literal["vocab", "level", "child"]

# A beam as wide as the list loses 2 to 10% of the true list on trained models; 2.5 times as wide
# lost none in our measurements. The floor keeps short lists from being searched with few beams.
_WIDTH_PER_ANSWER = 2.5
_LEAST_WIDTH = 10


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
        *,
        width: int | None = None,
        excluded: Sequence[IndexArray] | None = None,
        normalize: Normalize = "vocab",
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt.

        Among answers of one score the lower item_index comes first. A request gives the same answer
        alone and in a batch.

        Args:
            prompts: U token id sequences, each at least one long.
            k: answers a prompt.
            width: beams a prompt, at least k; None searches with 2.5 k.
            excluded: for each prompt the item_index that it may not be answered with; None excludes
                nothing.
            normalize: what a code's probability is relative to: all tokens of the vocabulary
                ("vocab", what LC-Rec, MiniOneRec and constrained `generate` rank by), the codes of
                its level ("level"), or the legal codes after its prefix ("child", as in GRID).

        Raises:
            CapacityError: k or width below 1, k above the items that a prompt may be answered with,
                or width below k.
            DataError: an empty or overlong prompt, a token outside the vocabulary, or lists that do
                not match.
            UnknownItemError: an excluded item_index outside the catalogue.
            DecodeError: another `normalize`.
            ModelError: the model gave a score that is not a number.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine can take."""

    n_items: int
    vocabulary_size: int
    max_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request: every field is safe to use as it is."""

    prompts: tuple[IndexArray, ...]
    k: int
    width: int
    excluded: tuple[IndexArray, ...]
    normalize: Normalize


def default_width(k: int, n_items: int) -> int:
    """The number of beams a prompt that a search for k answers uses unless told otherwise."""
    return min(max(math.ceil(_WIDTH_PER_ANSWER * k), _LEAST_WIDTH), n_items)


def check_request(
    limits: EngineLimits,
    prompts: Sequence[Sequence[int]],
    k: int,
    *,
    width: int | None,
    excluded: Sequence[IndexArray] | None,
    normalize: Normalize,
) -> Request:
    """The request in the form that an engine works on, or an error that names all that is wrong."""
    if normalize not in get_args(Normalize):
        raise DecodeError(
            f"normalize={normalize!r} is unknown; use one of {', '.join(get_args(Normalize))}"
        )
    if not 1 <= k <= limits.n_items:
        raise CapacityError(
            f"k={k} answers were asked for, but the catalogue holds {limits.n_items} items; "
            f"ask for 1 to {limits.n_items}"
        )
    if width is not None and width < k:
        raise CapacityError(
            f"width={width} beams cannot give k={k} answers; use at least {k}, or leave it out for "
            f"{default_width(k, limits.n_items)}"
        )
    return Request(
        prompts=_check_prompts(prompts, limits),
        k=k,
        width=default_width(k, limits.n_items) if width is None else min(width, limits.n_items),
        excluded=_check_excluded(excluded, len(prompts), k, limits.n_items),
        normalize=normalize,
    )


def _check_prompts(
    prompts: Sequence[Sequence[int]], limits: EngineLimits
) -> tuple[IndexArray, ...]:
    arrays = tuple(np.asarray(prompt, dtype=np.int64) for prompt in prompts)
    most, vocabulary_size = limits.max_prompt_tokens, limits.vocabulary_size
    problems = []
    for row, prompt in enumerate(arrays):
        if not len(prompt):
            problems.append(f"prompt {row} is empty; give at least one token")
        elif most is not None and len(prompt) > most:
            problems.append(
                f"prompt {row} has {len(prompt)} tokens; the model takes {most}, so shorten the "
                "history"
            )
        elif not 0 <= int(prompt.min()) <= int(prompt.max()) < vocabulary_size:
            wrong = prompt[(prompt < 0) | (prompt >= vocabulary_size)][0]
            problems.append(
                f"prompt {row} holds token {wrong}; the model's vocabulary is 0 to "
                f"{vocabulary_size - 1}, so encode it with the model's own tokenizer"
            )
    if problems:
        raise DataError(join_problems("prompts", problems))
    return arrays


def _check_excluded(
    excluded: Sequence[IndexArray] | None, n_prompts: int, k: int, n_items: int
) -> tuple[IndexArray, ...]:
    if excluded is None:
        return (np.empty(0, dtype=np.int64),) * n_prompts
    if len(excluded) != n_prompts:
        raise DataError(
            f"excluded has {len(excluded)} lists for {n_prompts} prompts; give one a prompt"
        )
    arrays = tuple(np.unique(np.asarray(items, dtype=np.int64)) for items in excluded)
    unknown = [
        f"prompt {row} excludes item_index {items[0] if items[0] < 0 else items[-1]}"
        for row, items in enumerate(arrays)
        if items.size and not 0 <= items[0] <= items[-1] < n_items
    ]
    if unknown:
        subject = f"excluded items must be in the catalogue, 0 to {n_items - 1}"
        raise UnknownItemError(join_problems(subject, unknown))
    short = [
        f"prompt {row} has {n_items - len(items)} legal items: {len(items)} of {n_items} excluded"
        for row, items in enumerate(arrays)
        if n_items - len(items) < k
    ]
    if short:
        raise CapacityError(
            join_problems(f"k={k} is more than there is to answer; lower k or exclude less", short)
        )
    return arrays

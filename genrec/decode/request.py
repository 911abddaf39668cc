"""Requests to an engine, checked: every error about arguments comes from here, before any work.

Owns the rules that all engines share. Knows no model: an engine says what it can take in an
`EngineLimits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import ItemFilter, Normalize, Search
from genrec.errors import CapacityError, DataError, DecodeError, UnknownItemError, join_problems
from genrec.types import IndexArray

# A beam as wide as the list loses 2 to 10% of the true list on trained models; 2.5 times as wide
# lost none in our measurements. The floor keeps short lists from being searched with few beams.
_WIDTH_PER_ANSWER = 2.5
_LEAST_WIDTH = 10


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine can take."""

    n_items: int
    vocabulary_size: int
    max_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request: every field is safe to use as it is, and `search.width` is set."""

    prompts: tuple[IndexArray, ...]
    k: int
    search: Search
    filters: tuple[ItemFilter, ...]

    @property
    def width(self) -> int:
        """How many beams a prompt has."""
        assert self.search.width is not None
        return self.search.width

    def select(self, rows: Sequence[int]) -> Request:
        """The same request for some of its prompts."""
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            filters=tuple(self.filters[row] for row in rows),
        )


def default_width(k: int, n_items: int) -> int:
    """The number of beams a prompt that a search for k answers uses unless told otherwise."""
    return min(max(math.ceil(_WIDTH_PER_ANSWER * k), _LEAST_WIDTH), n_items)


def check_request(
    limits: EngineLimits,
    prompts: Sequence[Sequence[int]],
    k: int,
    search: Search,
    filters: Sequence[ItemFilter] | None,
) -> Request:
    """The request in the form that an engine works on, or an error that names all that is wrong."""
    _check_search(search)
    if not 1 <= k <= limits.n_items:
        raise CapacityError(
            f"k={k} answers were asked for, but the catalogue holds {limits.n_items} items; "
            f"ask for 1 to {limits.n_items}"
        )
    width = search.width
    if width is not None and width < k:
        raise CapacityError(
            f"width={width} beams cannot give k={k} answers; use at least {k}, or leave it out for "
            f"{default_width(k, limits.n_items)}"
        )
    width = default_width(k, limits.n_items) if width is None else min(width, limits.n_items)
    if search.groups > width:
        raise CapacityError(
            f"groups={search.groups} cannot share width={width} beams; use at most {width} groups, "
            f"or more beams"
        )
    return Request(
        prompts=_check_prompts(prompts, limits),
        k=k,
        search=replace(search, width=width),
        filters=_check_filters(filters, len(prompts), k, limits.n_items),
    )


def _check_search(search: Search) -> None:
    if search.normalize not in get_args(Normalize):
        raise DecodeError(
            f"normalize={search.normalize!r} is unknown; use one of "
            f"{', '.join(get_args(Normalize))}"
        )
    problems = []
    if search.max_evaluations < 1:
        problems.append(f"max_evaluations={search.max_evaluations}; use 1 or more")
    if search.groups < 1:
        problems.append(f"groups={search.groups}; use 1 for plain search, or more")
    if not 0 <= search.diversity < math.inf:
        problems.append(f"diversity={search.diversity}; use 0 or more")
    if not 0 <= search.length_penalty < math.inf:
        problems.append(f"length_penalty={search.length_penalty}; use 0 (sums) to 1 (means)")
    if search.exact and search.groups > 1:
        problems.append(f"exact with groups={search.groups}; a diverse list has no exact answer")
    if problems:
        raise DecodeError(join_problems("search", problems))


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


def _check_filters(
    filters: Sequence[ItemFilter] | None, n_prompts: int, k: int, n_items: int
) -> tuple[ItemFilter, ...]:
    if filters is None:
        return (ItemFilter(),) * n_prompts
    if len(filters) != n_prompts:
        raise DataError(f"{len(filters)} filters for {n_prompts} prompts; give one a prompt")
    checked = tuple(
        replace(
            wanted,
            excluded=np.unique(np.asarray(wanted.excluded, dtype=np.int64)),
            only=None if wanted.only is None else np.unique(np.asarray(wanted.only, np.int64)),
        )
        for wanted in filters
    )
    _check_items(checked, n_items)
    short = []
    for row, (wanted, n_legal) in enumerate(
        zip(checked, count_legal(checked, n_items), strict=True)
    ):
        if n_legal < k:
            short.append(
                f"prompt {row} has {n_legal} legal items: {len(wanted.excluded)} of {n_items} "
                "excluded"
                + ("" if wanted.allowed is None else ", others not allowed")
                + ("" if wanted.only is None else f", only {len(wanted.only)} named as allowed")
            )
    if short:
        raise CapacityError(
            join_problems(f"k={k} is more than there is to answer; lower k or exclude less", short)
        )
    return checked


def _check_items(filters: Sequence[ItemFilter], n_items: int) -> None:
    unknown, unfit = [], []
    for row, wanted in enumerate(filters):
        items, mask = wanted.excluded, wanted.allowed
        named = {"excludes": items, "allows": items[:0] if wanted.only is None else wanted.only}
        for verb, rows in named.items():
            if rows.size and not 0 <= rows[0] <= rows[-1] < n_items:
                outside = rows[0] if rows[0] < 0 else rows[-1]
                unknown.append(f"prompt {row} {verb} item_index {outside}")
        if mask is not None and (mask.shape != (n_items,) or mask.dtype != np.bool_):
            unfit.append(f"prompt {row} allows by a mask of shape {mask.shape}, {mask.dtype}")
    if unknown:
        subject = f"the items of a filter must be in the catalogue, 0 to {n_items - 1}"
        raise UnknownItemError(join_problems(subject, unknown))
    if unfit:
        raise DataError(join_problems(f"a mask must be ({n_items},) bool, one an item", unfit))


def count_legal(filters: Sequence[ItemFilter], n_items: int) -> list[int]:
    """How many items each filter leaves; a mask that is shared is counted once.

    Args:
        filters: their excluded items each once.
        n_items: of the catalogue.
    """
    totals: dict[int, int] = {}
    counts = []
    for wanted in filters:
        mask = wanted.allowed
        if wanted.only is not None:
            counts.append(len(list_only(wanted)))
            continue
        if mask is None:
            counts.append(n_items - len(wanted.excluded))
            continue
        if id(mask) not in totals:
            totals[id(mask)] = int(np.count_nonzero(mask))
        counts.append(totals[id(mask)] - int(np.count_nonzero(mask[wanted.excluded])))
    return counts


def list_only(wanted: ItemFilter) -> IndexArray:
    """The rising item_index that a filter with `only` leaves."""
    assert wanted.only is not None, "of other filters the complement is short"
    items = np.setdiff1d(wanted.only, wanted.excluded)
    return items if wanted.allowed is None else items[wanted.allowed[items]]


def narrow_filters(filters: Sequence[ItemFilter], mask: NDArray[np.bool_]) -> list[ItemFilter]:
    """Filters that also leave out what a mask leaves out; masks that were shared still are.

    Args:
        filters: checked.
        mask: (N,) bool.
    """
    joined: dict[int, NDArray[np.bool_]] = {}
    narrowed = []
    for wanted in filters:
        allowed = mask
        if wanted.allowed is not None:
            if id(wanted.allowed) not in joined:
                joined[id(wanted.allowed)] = wanted.allowed & mask
            allowed = joined[id(wanted.allowed)]
        excluded = wanted.excluded[mask[wanted.excluded]]
        narrowed.append(ItemFilter(excluded, allowed, wanted.only))
    return narrowed

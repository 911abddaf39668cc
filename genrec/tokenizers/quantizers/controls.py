"""Ids that mean nothing: random ones, and numbers in the order in which items first appear.

Owns the two rules. They are controls: what a model gains from semantic IDs is what it does better
than with these.

Source: "random" and "sequential indexing" of P5 (Geng et al. 2022; Hua et al. 2023, "How to index
item IDs for recommendation foundation models"; Xu et al. 2023, OpenP5). There an id is a number
that the language model cuts into pieces; here its digits, base K, are the codes of the levels.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from genrec.tokenizers.inputs import DATA, FitInput
from genrec.tokenizers.quantizers.named_codes import Named, NamedCodes
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray, check_capacity
from genrec.tokenizers.uniqueness.cells import pack_rows
from genrec.types import IndexArray

_SPARE_DRAWS = 64
_log = logging.getLogger(__name__)


def make_random(recipe: TokenizeRecipe, dimensions: int) -> NamedCodes:
    """The control of random codes: P5's random indexing."""
    del dimensions
    return NamedCodes(recipe, _number_random, _extend_random)


def make_sequential(recipe: TokenizeRecipe, dimensions: int) -> NamedCodes:
    """The control of numbered items: P5's sequential indexing."""
    del dimensions
    return NamedCodes(recipe, _number_sequential, _extend_sequential)


def need_data(recipe: TokenizeRecipe) -> frozenset[str]:
    """A data artefact, whatever the recipe."""
    del recipe
    return frozenset({DATA})


def _number_random(recipe: TokenizeRecipe, given: FitInput) -> Named:
    sizes = recipe.codebook_sizes
    check_capacity(given.n_items, sizes)
    nothing = np.zeros((0, len(sizes)), dtype=np.int32)
    return Named(draw_codes(given.n_items, sizes, nothing, recipe.seed), sizes)


def _extend_random(
    recipe: TokenizeRecipe, sizes: tuple[int, ...], n_items: int, taken: CodeArray
) -> CodeArray:
    # Another stream than the fit's: the same one would begin with codes that are all taken.
    return draw_codes(n_items, sizes, taken, recipe.seed + 1 + len(taken))


def draw_codes(n_items: int, sizes: tuple[int, ...], taken: CodeArray, seed: int) -> CodeArray:
    """Distinct codes (n, L), drawn uniformly from those that are not taken.

    Raises:
        CapacityError: too few are free.
    """
    check_capacity(n_items + len(taken), sizes)
    random = np.random.default_rng(seed)
    space = math.prod(sizes)
    if space <= 2 * (n_items + len(taken)):  # nearly full: drawing would mostly hit what is taken
        free = np.setdiff1d(np.arange(space), pack_rows(taken, sizes), assume_unique=True)
        return write_digits(random.permutation(free)[:n_items], sizes)
    found = taken
    while len(found) < len(taken) + n_items:
        wanted = 2 * (len(taken) + n_items - len(found)) + _SPARE_DRAWS
        columns = [random.integers(size, size=wanted, dtype=np.int32) for size in sizes]
        both = np.concatenate([found, np.stack(columns, axis=1)])
        first = np.unique(pack_rows(both, sizes), return_index=True)[1]
        found = both[np.sort(first)]
    return np.ascontiguousarray(found[len(taken) : len(taken) + n_items])


def write_digits(numbers: IndexArray, sizes: tuple[int, ...]) -> CodeArray:
    """Each number as digits (n, L), the most significant first, level l to the base sizes[l]."""
    digits = np.empty((len(numbers), len(sizes)), dtype=np.int32)
    left = numbers.astype(np.int64)
    for level in range(len(sizes) - 1, -1, -1):
        left, digits[:, level] = np.divmod(left, sizes[level])
    return digits


def _number_sequential(recipe: TokenizeRecipe, given: FitInput) -> Named:
    sizes = recipe.codebook_sizes
    check_capacity(given.n_items, sizes)
    whole = recipe.sequential.splits == "all"
    _log.warning(
        "sequential: neighbouring numbers tell who chose what together%s; use these IDs as a "
        "control, not as a result",
        ", validation and test choices included" if whole else "",
    )
    histories = given.histories(("train", "valid", "test") if whole else ("train",))
    chosen = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    items, first = np.unique(chosen, return_index=True)
    numbers = np.full(given.n_items, -1, dtype=np.int64)
    numbers[items[np.argsort(first)]] = np.arange(len(items))
    never = np.flatnonzero(numbers < 0)
    numbers[never] = np.arange(len(items), given.n_items)
    return Named(write_digits(numbers, sizes), sizes)


def _extend_sequential(
    recipe: TokenizeRecipe, sizes: tuple[int, ...], n_items: int, taken: CodeArray
) -> CodeArray:
    """The smallest numbers that are free."""
    del recipe
    check_capacity(n_items + len(taken), sizes)
    held: NDArray[np.bool_] = np.zeros(n_items + len(taken), dtype=np.bool_)
    numbers = _read_digits(taken, sizes, len(held))
    held[numbers[numbers < len(held)]] = True
    return write_digits(np.flatnonzero(~held)[:n_items], sizes)


def _read_digits(codes: CodeArray, sizes: tuple[int, ...], limit: int) -> IndexArray:
    """The numbers that digits write; `limit` for any that is as large or larger."""
    numbers = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(sizes):
        # No number here comes near 2**63 before it is cut, since limit and sizes are far below.
        numbers = np.minimum(numbers * size + codes[:, level], limit)
    return numbers

"""Which rule tells apart the items that share all their codes.

Owns the names of the policies and what each is given. Knows no quantizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genrec.recipe import find_choice
from genrec.tokenizers.assign import Assignment, CodeArray, assign_unique
from genrec.tokenizers.sections import UniqueSection
from genrec.types import FloatArray, IndexArray

LatentReader = Callable[[IndexArray], FloatArray]
"""The latents (n, d) of the items in some rows, computed when asked for."""


@dataclass(frozen=True, slots=True)
class Collisions:
    """Codes as the quantizer gave them, and what is needed to tell them apart.

    Shapes:
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32; a latent is near the sum of its codes' rows.
        taken: (M, L') int32, final codes that are not to be given out; L' is L or, with a suffix
            token, L + 1.
    """

    codes: CodeArray
    codebooks: tuple[FloatArray, ...]
    read_latents: LatentReader
    taken: CodeArray | None = None
    suffix_size: int | None = None


Policy = Callable[[Collisions, UniqueSection], Assignment]


def _assign(collisions: Collisions, values: UniqueSection) -> Assignment:
    del values
    rows = np.arange(len(collisions.codes), dtype=np.int64)
    return assign_unique(collisions.read_latents(rows), collisions.codes, collisions.codebooks)


POLICIES: dict[str, Policy] = {"assign": _assign}


def make_unique(policy: str, collisions: Collisions, values: UniqueSection) -> Assignment:
    """Codes in which no two items are alike, by the policy of that name.

    No item moves that shared its codes with none.

    Raises:
        CapacityError: there is no room for every item.
        RecipeError: an unknown policy.
    """
    return find_choice("uniqueness policy", policy, POLICIES)(collisions, values)


def keep_codes(codes: CodeArray, codebook_sizes: tuple[int, ...]) -> Assignment:
    """Codes that are unique already, with nothing moved."""
    still = np.zeros(len(codes))
    return Assignment(codes, still.astype(np.bool_), still, codebook_sizes)

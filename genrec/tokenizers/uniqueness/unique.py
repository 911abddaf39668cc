"""Which rule tells apart the items that share all their codes.

Owns the names of the policies and what each is given. Knows no quantizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genrec.errors import CapacityError
from genrec.recipe import find_choice
from genrec.tokenizers.sections import UniqueSection
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray, assign_unique
from genrec.tokenizers.uniqueness.groups import LatentReader
from genrec.tokenizers.uniqueness.spread import spread_unique
from genrec.tokenizers.uniqueness.suffix import append_suffix
from genrec.types import FloatArray


@dataclass(frozen=True, slots=True)
class Collisions:
    """Codes as the quantizer gave them, and what is needed to tell them apart.

    Attributes:
        read_latents: asked for colliding items only, a batch at a time.
        suffix_size: how many suffix codes the fitted tokenizer has; None while it is fitted.
        fixed_levels: how many first levels no item may change.

    Shapes:
        codes: (N, L) int32.
        codebooks: L arrays (K, d) float32; a latent is near the sum of its codes' rows.
        taken: (M, L') int32, final codes that are not to be given out, no two alike; L' is L or,
            with a suffix token, L + 1.
    """

    codes: CodeArray
    codebooks: tuple[FloatArray, ...]
    read_latents: LatentReader
    taken: CodeArray | None = None
    suffix_size: int | None = None
    fixed_levels: int = 0


Policy = Callable[[Collisions, UniqueSection], Assignment]


def _assign(given: Collisions, values: UniqueSection) -> Assignment:
    del values
    return assign_unique(given.codes, given.codebooks, given.read_latents, given.taken)


def _spread(given: Collisions, values: UniqueSection) -> Assignment:
    return spread_unique(
        given.codes,
        given.codebooks,
        given.read_latents,
        given.taken,
        epsilon=values.sinkhorn_epsilon,
        iterations=values.sinkhorn_iterations,
    )


def _append(given: Collisions, values: UniqueSection) -> Assignment:
    return append_suffix(
        given.codes,
        [len(book) for book in given.codebooks],
        given.taken,
        room=values.suffix_room,
        suffix_size=given.suffix_size,
    )


POLICIES: dict[str, Policy] = {"assign": _assign, "sinkhorn": _spread, "suffix": _append}


def make_unique(policy: str, collisions: Collisions, values: UniqueSection) -> Assignment:
    """Codes in which no two items are alike, by the policy of that name.

    No item moves that shared its codes with none.

    Raises:
        CapacityError: there is no room for every item, or none that keeps its fixed levels.
        RecipeError: an unknown policy.
    """
    assignment = find_choice("uniqueness policy", policy, POLICIES)(collisions, values)
    fixed = slice(collisions.fixed_levels)
    changed = (assignment.codes[:, fixed] != collisions.codes[:, fixed]).any(axis=1)
    if changed.any():
        raise CapacityError(
            f"{int(changed.sum()):,} items find no free codes that begin as theirs do; fit a "
            f"tokenizer with more codes or another level"
        )
    return assignment


def keep_codes(codes: CodeArray, codebook_sizes: tuple[int, ...]) -> Assignment:
    """Codes that are unique already, with nothing moved."""
    still = np.zeros(len(codes))
    return Assignment(codes, still.astype(np.bool_), still, codebook_sizes)

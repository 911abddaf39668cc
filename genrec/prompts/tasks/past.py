"""What lies before a place in the walks, for fields that sum a user's past up.

Owns ranges of places and whether a range holds anything of a kind. What a prompt shows item by item
is limited by `windows`; a sum is as long however much it sums up, and takes the whole past.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.tasks.sequential import find_targets, find_walkers
from genrec.types import IndexArray

FindFlags = Callable[[Corpus], NDArray[np.bool_]]


def find_starts(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R,) where the walk begins that each place lies in."""
    walks = corpus.walks
    return walks.offsets[walks.owner[subjects]]


def find_past(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    """(R,) places in the walks to the range of what the same user chose before."""
    return find_starts(corpus, subjects), subjects


def any_within(flags: NDArray[np.bool_], starts: IndexArray, ends: IndexArray) -> NDArray[np.bool_]:
    """(R,) whether a flag is up from each start to before each end.

    Args:
        flags: (M,) one for each place in the walks.
        starts: (R,) places.
        ends: (R,) places.
    """
    before = np.append(0, np.cumsum(flags))
    found: NDArray[np.bool_] = before[ends] > before[starts]
    return found


def find_last_targets(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    """The place of each user's last choice with enough history before it: one row a user."""
    return find_targets(corpus, recipe.model_copy(update={"targets": "last"}))


def find_users_at(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R,) places in the walks to the users who chose there, user_index (R,)."""
    return find_walkers(corpus, subjects)[0]

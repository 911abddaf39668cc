"""Questions about a user whom an embedding or a user id stands for.

Two kinds: what the next item is like (a subject is the target's place in the walks), and what the
user is like (a subject is a row of the walks' users). Both look at training choices alone.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import CleanText
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, item_field, sid_field
from genrec.prompts.tasks.users import user_fields
from genrec.types import IndexArray

_COLUMNS = {"favourite_brand": "brand", "favourite_category": "categories"}


def _find_targets_users(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return find_walkers(corpus, subjects)[0]


def _find_users(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    lengths = np.diff(corpus.walks.offsets)
    return np.flatnonzero(lengths >= recipe.min_history).astype(np.int64)


def _find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    return corpus.walks.user_index[subjects], np.full(len(subjects), -1, dtype=np.int64)


def _find_user_index(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return corpus.walks.user_index[subjects]


def _find_latest(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    walks = corpus.walks
    return walks.item_index[walks.offsets[subjects + 1] - 1]


def _count_favourites(corpus: Corpus, column: str) -> list[CleanText]:
    """For each of the walks' users the value most of the items have; "" without a clear one.

    A value counts from two items on, for a single one is no habit; of equally frequent values the
    one that came first.
    """
    texts, walks = corpus.texts(column), corpus.walks
    items, offsets = walks.item_index.tolist(), walks.offsets.tolist()
    found = []
    for start, end in pairwise(offsets):
        counts = Counter(text for item in items[start:end] if (text := texts[item]))
        value, times = counts.most_common(1)[0] if counts else (CleanText(""), 0)
        found.append(value if times > 1 else CleanText(""))
    return found


def _favourite_field(column: str) -> Field:
    def find_all(corpus: Corpus) -> list[CleanText]:
        return corpus.remember(f"favourite.{column}", lambda: _count_favourites(corpus, column))

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = find_all(corpus)
        return [texts[user] for user in subjects.tolist()]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return np.fromiter(map(bool, find_all(corpus)), dtype=np.bool_)[subjects]

    return Field(read, find_filled)


USER_QUESTION_TASKS: dict[str, Task] = {
    "next-attribute": Task(
        find_targets,
        find_walkers,
        {**HISTORY_FIELDS, **user_fields(_find_targets_users)},
        {f"next_{name}": item_field(name, find_chosen) for name in ("brand", "categories")},
    ),
    "user-attribute": Task(
        _find_users,
        _find_owners,
        user_fields(_find_user_index),
        {
            **{name: _favourite_field(column) for name, column in _COLUMNS.items()},
            "latest_sid": sid_field(_find_latest),
            "latest_title": item_field("title", _find_latest),
        },
    ),
}

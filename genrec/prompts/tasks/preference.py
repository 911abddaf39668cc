"""Preference rows: a history to what its user prefers. One row a user.

A subject is the place of a user's last training choice; history and preference are of what came
before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.preferences import (
    describe_ranges,
    find_described,
    find_kinds,
    name_most_frequent,
)
from genrec.prompts.recipe import Template
from genrec.prompts.render import CleanText
from genrec.prompts.tasks.past import any_within, find_last_targets, find_past, find_users_at
from genrec.prompts.tasks.sequential import HISTORY_FIELDS
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

PREFERENCE_COLUMN = "preference"
FindRanges = Callable[[Corpus, IndexArray], tuple[IndexArray, IndexArray]]
FindUsers = Callable[[Corpus, IndexArray], IndexArray]


def preference_field(find_users: FindUsers, find_ranges: FindRanges) -> Field:
    """The users table's `preference`, and where it is empty one derived from a range of choices.

    Args:
        find_users: (R,) subjects to (R,) user_index.
        find_ranges: (R,) subjects to the places (R,) and (R,) where each range starts and ends.
    """

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        given = corpus.user_texts(PREFERENCE_COLUMN)
        texts: list[str] = [given[user] for user in find_users(corpus, subjects).tolist()]
        lacking = [row for row, text in enumerate(texts) if not text]
        if lacking:
            derived = describe_ranges(corpus, *find_ranges(corpus, subjects[lacking]))
            for row, text in zip(lacking, derived, strict=True):
                texts[row] = text
        return texts

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        given = np.fromiter(map(bool, corpus.user_texts(PREFERENCE_COLUMN)), dtype=np.bool_)
        found: NDArray[np.bool_] = given[find_users(corpus, subjects)]
        return found | any_within(find_described(corpus), *find_ranges(corpus, subjects))

    return Field(read, find_filled)


def _favourites(find_values: Callable[[Corpus], list[CleanText]]) -> Field:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        starts, ends = find_past(corpus, subjects)
        return list(name_most_frequent(corpus, find_values(corpus), starts, ends))

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        filled = np.fromiter(map(bool, find_values(corpus)), dtype=np.bool_)
        return any_within(filled[corpus.walks.item_index], *find_past(corpus, subjects))

    return Field(read, find_filled)


def _find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    # No item is asked for.
    return find_users_at(corpus, subjects), np.full(len(subjects), -1, dtype=np.int64)


PREFERENCE_TASKS: dict[str, Task] = {
    "history-to-preference": Task(
        find_last_targets,
        _find_owners,
        HISTORY_FIELDS,
        {
            "preference": preference_field(find_users_at, find_past),
            "favourite_kinds": _favourites(find_kinds),
            "favourite_brands": _favourites(lambda corpus: corpus.texts("brand")),
        },
    ),
}

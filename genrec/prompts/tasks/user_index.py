"""Rows about a user by name or semantic id: to an item, to a preference, and back.

`user-to-item` has a row for each training choice (its place in the walks), OpenP5's straightforward
recommendation. ULMRec's others need a tokenizer of users. No history is shown.
"""

from __future__ import annotations

import numpy as np

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.tasks.places import USER_FIELDS, event_field, find_places
from genrec.prompts.tasks.preference import preference_field
from genrec.prompts.tasks.sequential import find_chosen, find_walkers
from genrec.prompts.tasks.task import Task, choose, item_field, sid_field
from genrec.prompts.tasks.users import user_fields
from genrec.types import IndexArray


def _find_rows(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    return np.arange(len(corpus.walks.user_index), dtype=np.int64)


def _find_users(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return corpus.walks.user_index[subjects]


def _find_walks(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    return corpus.walks.offsets[subjects], corpus.walks.offsets[subjects + 1]


def _find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    # No item is asked for.
    return _find_users(corpus, subjects), np.full(len(subjects), -1, dtype=np.int64)


_USER = user_fields(_find_users)
_PREFERENCE = {"preference": preference_field(_find_users, _find_walks)}

USER_INDEX_TASKS: dict[str, Task] = {
    "user-to-item": Task(
        find_places,
        find_walkers,
        USER_FIELDS,
        {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)},
    ),
    "user-to-preference": Task(_find_rows, _find_owners, _USER, _PREFERENCE),
    "preference-to-user": Task(_find_rows, _find_owners, _PREFERENCE, choose(_USER, "user_sid")),
    "review-to-user": Task(
        find_places,
        find_walkers,
        {
            "review_text": event_field("review_text"),
            "review_title": event_field("review_title"),
            "item": sid_field(find_chosen),
            "title": item_field("title", find_chosen),
        },
        choose(USER_FIELDS, "user_sid"),
    ),
}

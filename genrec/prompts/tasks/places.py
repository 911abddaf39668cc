"""What is known of one choice: its item, its user, what came before it, what the user said of it.

A subject is a place in the corpus's walks. Owns the fields that all tasks about one choice share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.tasks.sequential import HISTORY_FIELDS, find_chosen, find_walkers
from genrec.prompts.tasks.task import ITEM_COLUMNS, Field, FindFilled, item_field, sid_field
from genrec.prompts.tasks.users import user_fields
from genrec.types import IndexArray

ReadTexts = Callable[[Corpus], Sequence[str]]


def find_places(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    """Every place in the walks, users' first choices too."""
    return np.arange(len(corpus.walks.item_index), dtype=np.int64)


def _find_users(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return find_walkers(corpus, subjects)[0]


def _find_past(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    walks = corpus.walks
    return subjects > walks.offsets[walks.owner[subjects]]


def _after_first(field: Field) -> Field:
    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return _find_past(corpus, subjects) & field.find_filled(corpus, subjects)

    return Field(field.read, find_filled, trusted=field.trusted)


def event_field(column: str) -> Field:
    """A text that the user left with the choice, such as the review."""

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = corpus.event_texts(column)
        return [texts[place] for place in subjects.tolist()]

    return Field(read, filled_where(f"places.{column}", lambda c: c.event_texts(column)))


def filled_where(key: str, read_texts: ReadTexts) -> FindFilled:
    """A `find_filled` that looks texts by place up, and remembers under a key which have one."""

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        def find_all() -> NDArray[np.bool_]:
            return np.fromiter(map(bool, read_texts(corpus)), dtype=np.bool_)

        return corpus.remember(f"{key}.filled", find_all)[subjects]

    return find_filled


PAST_FIELDS = {name: _after_first(field) for name, field in HISTORY_FIELDS.items()}
"""The history, for tasks whose subjects may be a user's first choice."""

USER_FIELDS = user_fields(_find_users)
"""Who chose."""

ITEM_FIELDS = {
    "sid": sid_field(find_chosen),
    **{column: item_field(column, find_chosen) for column in ITEM_COLUMNS},
}
"""What was chosen."""

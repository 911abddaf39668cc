"""The tasks that rows are written for: which rows there are, and what their fields hold.

Owns one entry a task in `TASKS`; a new task is a new entry. What a template's input may use and
what its target may use are apart, so that no prompt can show its answer. Knows no wording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import join_sids, join_titles
from genrec.types import IndexArray

ReadField = Callable[[Corpus, Template, IndexArray], list[str]]
FindFilled = Callable[[Corpus, IndexArray], NDArray[np.bool_]]
_ITEM_COLUMNS = ("title", "brand", "categories", "description", "price", "text")


@dataclass(frozen=True, slots=True)
class Field:
    """One value that a template can show.

    Attributes:
        read: (R,) subjects to R values.
        find_filled: (R,) subjects to (R,) whether each has a value.
        trusted: whether the value is semantic ids rather than data.
    """

    read: ReadField
    find_filled: FindFilled
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of row. A subject is an int that stands for one row; the task says what it means.

    Attributes:
        find_subjects: all the training subjects of a corpus.
        find_owners: (R,) subjects to user_index (R,) and target item_index (R,), -1 for none.
        input_fields: what a prompt may use.
        target_fields: what a target may use.
    """

    find_subjects: Callable[[Corpus, PromptsRecipe], IndexArray]
    find_owners: Callable[[Corpus, IndexArray], tuple[IndexArray, IndexArray]]
    input_fields: Mapping[str, Field]
    target_fields: Mapping[str, Field]


def _always(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return np.ones(len(subjects), dtype=np.bool_)


def _item_field(column: str) -> Field:
    """A column of the catalogue, where the subject is an item_index."""

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = corpus.texts(column)
        return [texts[subject] for subject in subjects.tolist()]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        filled = np.fromiter(map(bool, corpus.texts(column)), dtype=np.bool_)
        return filled[subjects]

    return Field(read, find_filled)


def _read_sid(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return [corpus.sids[subject] for subject in subjects.tolist()]


# Sequential rows: a subject is the place of the target in the walks; what came before is history.


def _find_histories(corpus: Corpus, subjects: IndexArray) -> Iterator[list[int]]:
    """The items before each subject, oldest first; beyond max_history the oldest are left out."""
    walks = corpus.walks
    first = walks.offsets[walks.owner[subjects]]
    starts = np.maximum(first, subjects - corpus.max_history)
    for start, end in zip(starts.tolist(), subjects.tolist(), strict=True):
        yield walks.item_index[start:end].tolist()


def _read_history(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    sids, separator = corpus.sids, template.separator
    return [
        join_sids([sids[item] for item in items], separator)
        for items in _find_histories(corpus, subjects)
    ]


def _read_history_titles(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles = corpus.texts("title")
    return [
        join_titles([titles[item] for item in items], template.separator)
        for items in _find_histories(corpus, subjects)
    ]


def _find_titled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return np.full(len(subjects), any(corpus.texts("title")), dtype=np.bool_)


def _read_next_sid(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return _read_sid(corpus, template, corpus.walks.item_index[subjects])


def _find_sequential(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    offsets = corpus.walks.offsets
    if recipe.targets == "last":
        long_enough = np.diff(offsets) > recipe.min_history
        return np.asarray(offsets[1:][long_enough] - 1, dtype=np.int64)
    places = np.arange(len(corpus.walks.item_index), dtype=np.int64)
    lengths = places - offsets[:-1][corpus.walks.owner]
    return places[lengths >= recipe.min_history]


def _find_walkers(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    walks = corpus.walks
    return walks.user_index[walks.owner[subjects]], walks.item_index[subjects]


# Item rows: a subject is an item_index.


def _find_items(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    return np.arange(len(corpus.sids), dtype=np.int64)


def _find_item_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    return np.full(len(subjects), -1, dtype=np.int64), subjects


_SID = Field(_read_sid, _always, trusted=True)
_ITEM_FIELDS = {column: _item_field(column) for column in _ITEM_COLUMNS}

SEQUENTIAL = "sequential"
TASKS: dict[str, Task] = {
    SEQUENTIAL: Task(
        find_subjects=_find_sequential,
        find_owners=_find_walkers,
        input_fields={
            "history": Field(_read_history, _always, trusted=True),
            "history_titles": Field(_read_history_titles, _find_titled),
        },
        target_fields={"sid": Field(_read_next_sid, _always, trusted=True)},
    ),
    "item-to-sid": Task(
        find_subjects=_find_items,
        find_owners=_find_item_owners,
        input_fields=_ITEM_FIELDS,
        target_fields={"sid": _SID},
    ),
    "sid-to-item": Task(
        find_subjects=_find_items,
        find_owners=_find_item_owners,
        input_fields={"sid": _SID},
        target_fields=_ITEM_FIELDS,
    ),
}

"""What a task is: which rows there are, and what their fields hold.

Owns the two records that every task is made of, and fields that several tasks share. What a
template's input may use and what its target may use are apart, so that no prompt can show its
answer. Knows no wording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.types import IndexArray

ReadField = Callable[[Corpus, Template, IndexArray], list[str]]
FindFilled = Callable[[Corpus, IndexArray], NDArray[np.bool_]]
ITEM_COLUMNS = ("title", "brand", "categories", "description", "price", "text")


@dataclass(frozen=True, slots=True)
class Field:
    """One value that a template can show.

    Attributes:
        read: (R,) subjects to R values, `SidText` or `CleanText`.
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
        find_subjects: all the training subjects of a corpus, and none of whose answer or input is
            held out.
        find_owners: (R,) subjects to user_index (R,) and target item_index (R,), -1 for none.
        input_fields: what a prompt may use.
        target_fields: what a target may use.
    """

    find_subjects: Callable[[Corpus, PromptsRecipe], IndexArray]
    find_owners: Callable[[Corpus, IndexArray], tuple[IndexArray, IndexArray]]
    input_fields: Mapping[str, Field]
    target_fields: Mapping[str, Field]


def always(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    """(R,) True: the field has a value in every row."""
    return np.ones(len(subjects), dtype=np.bool_)


def item_field(column: str, find_items: Callable[[Corpus, IndexArray], IndexArray]) -> Field:
    """A column of the catalogue, of the item that each subject leads to.

    Args:
        column: of the items table; empty everywhere where the data lack it.
        find_items: (R,) subjects to (R,) item_index.
    """

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = corpus.texts(column)
        return [texts[item] for item in find_items(corpus, subjects).tolist()]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        filled = np.fromiter(map(bool, corpus.texts(column)), dtype=np.bool_)
        return filled[find_items(corpus, subjects)]

    return Field(read, find_filled)


def sid_field(find_items: Callable[[Corpus, IndexArray], IndexArray]) -> Field:
    """The semantic ids of the item that each subject leads to."""

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        sids = corpus.sids
        return [sids[item] for item in find_items(corpus, subjects).tolist()]

    return Field(read, always, trusted=True)


def choose(fields: Mapping[str, Field], *names: str) -> dict[str, Field]:
    """Some of the fields."""
    return {name: fields[name] for name in names}

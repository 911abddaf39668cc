"""Search rows: from what somebody wants, in words, to an item; and from a history to a query.

A subject is the place of the target in the walks. LC-Rec had a large language model write
intentions from reviews; here an item's column `intention` is one where the data have it, and else
keywords of the item's own text and of others' training reviews of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.keywords import find_intended, find_item_queries, read_intentions
from genrec.prompts.recipe import Template
from genrec.prompts.render import CleanText
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, sid_field
from genrec.types import IndexArray

INTENTION_COLUMN = "intention"
QUERY_COLUMN = "query"
_ReadDerived = Callable[[Corpus, IndexArray], list[CleanText]]
_FindDerived = Callable[[Corpus, IndexArray], NDArray[np.bool_]]


def _given_or_derived(column: str, read: _ReadDerived, find_filled: _FindDerived) -> Field:
    """A column of the chosen items, and where it is empty what is derived at the place."""

    def read_field(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        given = corpus.texts(column)
        texts: list[str] = [given[item] for item in find_chosen(corpus, subjects).tolist()]
        lacking = [row for row, text in enumerate(texts) if not text]
        if lacking:
            for row, text in zip(lacking, read(corpus, subjects[lacking]), strict=True):
                texts[row] = text
        return texts

    def find_any(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        given = np.fromiter(map(bool, corpus.texts(column)), dtype=np.bool_)
        found: NDArray[np.bool_] = given[find_chosen(corpus, subjects)]
        return found | find_filled(corpus, subjects)

    return Field(read_field, find_any)


def _read_queries(corpus: Corpus, places: IndexArray) -> list[CleanText]:
    queries = find_item_queries(corpus)
    return [queries[item] for item in find_chosen(corpus, places).tolist()]


def _find_queried(corpus: Corpus, places: IndexArray) -> NDArray[np.bool_]:
    filled = np.fromiter(map(bool, find_item_queries(corpus)), dtype=np.bool_)
    return filled[find_chosen(corpus, places)]


INTENTION = _given_or_derived(INTENTION_COLUMN, read_intentions, find_intended)
QUERY = _given_or_derived(QUERY_COLUMN, _read_queries, _find_queried)
_SID = {"sid": sid_field(find_chosen)}

SEARCH_TASKS: dict[str, Task] = {
    "item-search": Task(
        find_targets, find_walkers, {**HISTORY_FIELDS, "intention": INTENTION}, _SID
    ),
    "search-with-history": Task(
        find_targets, find_walkers, {**HISTORY_FIELDS, "query": QUERY}, _SID
    ),
    "query-suggestion": Task(find_targets, find_walkers, HISTORY_FIELDS, {"query": QUERY}),
}

"""Item rows: an item's text to its semantic ids and back. A subject is an item_index."""

from __future__ import annotations

import numpy as np

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.tasks.task import ITEM_COLUMNS, Task, item_field, sid_field
from genrec.types import IndexArray


def _find_items(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    return np.arange(len(corpus.sids), dtype=np.int64)


def _find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    return np.full(len(subjects), -1, dtype=np.int64), subjects


def _itself(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return subjects


_SID = sid_field(_itself)
_TEXTS = {column: item_field(column, _itself) for column in ITEM_COLUMNS}

ITEM_TASKS: dict[str, Task] = {
    "item-to-sid": Task(_find_items, _find_owners, _TEXTS, {"sid": _SID}),
    "sid-to-item": Task(_find_items, _find_owners, {"sid": _SID}, _TEXTS),
}

"""Sequential rows: what a user chose, and what comes next.

A subject is the place of the target in the corpus's walks; what came before it is the history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import join_sids, join_titles
from genrec.prompts.tasks.task import Field, Task, always, item_field, sid_field
from genrec.prompts.tasks.users import user_fields
from genrec.prompts.windows import find_histories
from genrec.types import IndexArray

SEQUENTIAL = "sequential"


def find_targets(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    """The places in the walks with enough history: all, or each user's last."""
    offsets = corpus.walks.offsets
    if recipe.targets == "last":
        long_enough = np.diff(offsets) > recipe.min_history
        return np.asarray(offsets[1:][long_enough] - 1, dtype=np.int64)
    places = np.arange(len(corpus.walks.item_index), dtype=np.int64)
    lengths = places - offsets[:-1][corpus.walks.owner]
    return places[lengths >= recipe.min_history]


def find_walkers(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    """(R,) places in the walks to user_index (R,) and item_index (R,)."""
    walks = corpus.walks
    return walks.user_index[walks.owner[subjects]], walks.item_index[subjects]


def find_chosen(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R,) places in the walks to the items chosen there, (R,)."""
    return corpus.walks.item_index[subjects]


def _read_history(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    sids, separator = corpus.sids, template.separator
    return [
        join_sids([sids[item] for item in items], separator)
        for items in find_histories(corpus, template, subjects)
    ]


def _read_history_titles(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles = corpus.texts("title")
    return [
        join_titles([titles[item] for item in items], template.separator)
        for items in find_histories(corpus, template, subjects)
    ]


def _find_titled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return np.full(len(subjects), any(corpus.texts("title")), dtype=np.bool_)


HISTORY_FIELDS: dict[str, Field] = {
    "history": Field(_read_history, always, trusted=True),
    "history_titles": Field(_read_history_titles, _find_titled),
}
"""What came before a place in the walks, for every task whose subjects are such places."""


def _find_users(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return find_walkers(corpus, subjects)[0]


SEQUENTIAL_TASKS: dict[str, Task] = {
    SEQUENTIAL: Task(
        find_targets,
        find_walkers,
        {**HISTORY_FIELDS, **user_fields(_find_users)},
        {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)},
    ),
}

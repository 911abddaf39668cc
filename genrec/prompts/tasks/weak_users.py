"""Rows of weak users: those of whom little is known, told with all that is, ratings included.

A subject is the place of the target in the walks, of users with at most `weak_history` training
items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import UNTITLED, CleanText, join_sids
from genrec.prompts.tasks.past import any_within, find_past
from genrec.prompts.tasks.ratings import read_ratings
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, item_field, sid_field
from genrec.prompts.windows import find_windows
from genrec.types import IndexArray


def _find_weak(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    places = find_targets(corpus, recipe)
    lengths = np.diff(corpus.walks.offsets)[corpus.walks.owner[places]]
    return places[lengths <= recipe.weak_history]


def _list_places(corpus: Corpus, template: Template, subjects: IndexArray) -> Iterator[IndexArray]:
    """The places of each subject's shown history."""
    starts = find_windows(corpus, template, subjects)
    for start, end in zip(starts.tolist(), subjects.tolist(), strict=True):
        yield np.arange(start, end)


def _judge(corpus: Corpus, liked: bool) -> NDArray[np.bool_]:
    """(M,) whether the choice at each place was rated, and as liked or not."""
    ratings = read_ratings(corpus)
    judged = np.array([*((like == liked) for like in ratings.liked), False], dtype=np.bool_)
    found: NDArray[np.bool_] = judged[ratings.level]
    return found


def _judged(liked: bool) -> Field:
    """The ids of the shown history that the user rated as liked, or rated lower."""

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        flags, items = _judge(corpus, liked), corpus.walks.item_index
        return [
            join_sids(
                [corpus.sids[item] for item in items[places[flags[places]]]], template.separator
            )
            for places in _list_places(corpus, template, subjects)
        ]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return any_within(_judge(corpus, liked), *find_past(corpus, subjects))

    return Field(read, find_filled, trusted=True)


def _read_rated(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles, ratings = corpus.texts("title"), read_ratings(corpus)
    items = corpus.walks.item_index
    written = ratings.write(ratings.level)

    def name(place: int) -> str:
        title = titles[items[place]] or UNTITLED
        return f"{title} ({written[place]})" if written[place] else title

    return [
        CleanText(template.separator.join(name(place) for place in places.tolist()))
        for places in _list_places(corpus, template, subjects)
    ]


def _find_rated(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    titled = np.fromiter(map(bool, corpus.texts("title")), dtype=np.bool_)
    rated = read_ratings(corpus).level >= 0
    return any_within(rated & titled[corpus.walks.item_index], *find_past(corpus, subjects))


WEAK_USER_TASKS: dict[str, Task] = {
    "weak-user": Task(
        _find_weak,
        find_walkers,
        {
            **HISTORY_FIELDS,
            "history_rated_titles": Field(_read_rated, _find_rated),
            "history_liked": _judged(True),
            "history_rated_low": _judged(False),
        },
        {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)},
    ),
}

"""Ratings by example: the same user's earlier ratings, and others' of the same item.

A subject is a place in the walks. Owns which examples a row may show: training choices only, the
user's own from before the place, and other users' from an earlier moment than the place's, so that
data without times have none of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.chance import draw_distinct
from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
from genrec.prompts.render import UNTITLED, CleanText, SidText
from genrec.prompts.tasks.places import ITEM_FIELDS, USER_FIELDS, find_places
from genrec.prompts.tasks.ratings import OPINION, RATING, SCALE_FIELDS, read_ratings
from genrec.prompts.tasks.sequential import find_walkers
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

_SEPARATOR = "; "


@dataclass(frozen=True, slots=True)
class _ItemRatings:
    """The rated places of every item, by item and then by time.

    Shapes:
        places: (E,) int64.
        first: (M,) int64, for each place in the walks where its item's run begins.
        earlier: (M,) int64, how many of the run are from an earlier moment; 0 where the user chose
            the item more than once, because these examples are others'.
    """

    places: IndexArray
    first: IndexArray
    earlier: IndexArray


def _read_item_ratings(corpus: Corpus) -> _ItemRatings:
    return corpus.remember("shots.items", lambda: _sort_item_ratings(corpus))


def _sort_item_ratings(corpus: Corpus) -> _ItemRatings:
    walks = corpus.walks
    times = corpus.event_numbers("timestamp")
    timed = np.isfinite(times)
    rated = np.flatnonzero(timed & (read_ratings(corpus).level >= 0))
    moments, moment = np.unique(times[timed], return_inverse=True)
    # One number for item and moment: places before it in order are the item's earlier ones.
    keys = np.full(len(times), -1, dtype=np.int64)
    keys[timed] = walks.item_index[timed] * (len(moments) + 1) + moment
    order = rated[np.argsort(keys[rated], kind="stable")]
    first = np.searchsorted(keys[order], walks.item_index * (len(moments) + 1))
    earlier = np.searchsorted(keys[order], keys) - first
    pairs = walks.owner * len(corpus.sids) + walks.item_index
    _, pair, times_chosen = np.unique(pairs, return_inverse=True, return_counts=True)
    earlier[~timed | (times_chosen[pair] > 1)] = 0
    return _ItemRatings(order, first, earlier)


def _find_own_counts(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Where in the rated places the user's begin, and how many are before each subject."""
    walks = corpus.walks
    rated = _find_rated_places(corpus)
    first = np.searchsorted(rated, walks.offsets[walks.owner[subjects]])
    return first, np.searchsorted(rated, subjects) - first


def _find_rated_places(corpus: Corpus) -> IndexArray:
    return corpus.remember("shots.rated", lambda: np.flatnonzero(read_ratings(corpus).level >= 0))


def find_own_shots(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, shots) places of the user's earlier ratings, oldest first; -1 in front where fewer."""
    first, n_earlier = _find_own_counts(corpus, subjects)
    drawn = draw_distinct(corpus.seed, "own-shots", subjects, n_earlier, corpus.recipe.shots)
    return _look_up(_find_rated_places(corpus), first, drawn)


def find_item_shots(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, shots) places of others' earlier ratings of the item, oldest first; -1 where fewer."""
    known = _read_item_ratings(corpus)
    n_earlier = known.earlier[subjects]
    drawn = draw_distinct(corpus.seed, "item-shots", subjects, n_earlier, corpus.recipe.shots)
    return _look_up(known.places, known.first[subjects], drawn)


def _look_up(places: IndexArray, first: IndexArray, drawn: IndexArray) -> IndexArray:
    if not len(places):
        return drawn
    return np.where(drawn < 0, -1, places[np.where(drawn < 0, 0, first[:, None] + drawn)])


def _has_own(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return _find_own_counts(corpus, subjects)[1] > 0


def _has_item(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return _read_item_ratings(corpus).earlier[subjects] > 0


def _has_titled_own(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return _has_own(corpus, subjects) & any(corpus.texts("title"))


def _has_titled_item(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return _has_item(corpus, subjects) & any(corpus.event_texts("review_title"))


def _read_own(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    # Numbers that genrec itself wrote, so the whole is trusted.
    ratings, sids = read_ratings(corpus), corpus.sids
    item, level = corpus.walks.item_index, ratings.level
    return [
        SidText(
            _SEPARATOR.join(
                f"{sids[item[place]]} {ratings.levels[level[place]]}" for place in row if place >= 0
            )
        )
        for row in find_own_shots(corpus, subjects).tolist()
    ]


def _read_own_titles(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles, item = corpus.texts("title"), corpus.walks.item_index
    return _write_titled(
        corpus, find_own_shots(corpus, subjects), lambda place: titles[item[place]]
    )


def _read_item(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    ratings = read_ratings(corpus)
    return [
        CleanText(
            _SEPARATOR.join(ratings.levels[ratings.level[place]] for place in row if place >= 0)
        )
        for row in find_item_shots(corpus, subjects).tolist()
    ]


def _read_item_titles(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles = corpus.event_texts("review_title")
    return _write_titled(corpus, find_item_shots(corpus, subjects), lambda place: titles[place])


def _write_titled(
    corpus: Corpus, shots: IndexArray, find_title: Callable[[int], CleanText]
) -> list[str]:
    ratings = read_ratings(corpus)
    return [
        CleanText(
            _SEPARATOR.join(
                f"{find_title(place) or UNTITLED}: {ratings.levels[ratings.level[place]]}"
                for place in row
                if place >= 0
            )
        )
        for row in shots.tolist()
    ]


SHOT_FIELDS: dict[str, Field] = {
    "own_shots": Field(_read_own, _has_own, trusted=True),
    "own_shots_titles": Field(_read_own_titles, _has_titled_own),
    "item_shots": Field(_read_item, _has_item),
    "item_shots_titles": Field(_read_item_titles, _has_titled_item),
}
"""The user's earlier ratings by semantic id or title; others' alone or by the review's title."""

SHOT_TASKS: dict[str, Task] = {
    "rating-shots": Task(
        find_places,
        find_walkers,
        {**ITEM_FIELDS, **USER_FIELDS, **SCALE_FIELDS, **SHOT_FIELDS},
        {"rating": RATING, "opinion": OPINION},
    ),
}

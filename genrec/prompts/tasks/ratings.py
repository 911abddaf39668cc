"""Rating rows: what a user thinks of a chosen item. A subject is a place in the walks.

Owns how ratings are written and what counts as liking. Where the data have no ratings, or the same
one everywhere, all of these fields are empty and their templates off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.chance import draw_below
from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
from genrec.prompts.render import CleanText
from genrec.prompts.tasks.places import ITEM_FIELDS, PAST_FIELDS, USER_FIELDS, find_places
from genrec.prompts.tasks.sequential import find_walkers
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

_TOPS = (1.0, 5.0, 10.0, 100.0)
_LIKED_SHARE = 0.8
_FEWEST_LEVELS = 2  # one rating for everything says nothing of anybody


@dataclass(frozen=True, slots=True)
class Ratings:
    """The training ratings, as the data write them.

    Attributes:
        level: (M,) int64, by place in the walks the rating's place in `levels`; -1 without one.
        levels: every rating that occurs, from low to high.
        liked: for each of `levels`, whether it says that the user likes the item.
        lowest: where the scale begins; "" without ratings.
        highest: where the scale ends; "" without ratings.
    """

    level: IndexArray
    levels: list[CleanText]
    liked: list[bool]
    lowest: CleanText
    highest: CleanText

    def write(self, level: IndexArray) -> list[CleanText]:
        """(R,) places in `levels` as texts; "" for -1."""
        texts = [*self.levels, CleanText("")]
        return [texts[place] for place in level.tolist()]


def read_ratings(corpus: Corpus) -> Ratings:
    """The ratings of a corpus's choices, read once.

    The scale ends at 1, 5, 10 or 100, whichever is the first that no rating exceeds, and begins at
    1, or at the lowest rating if that is less. From 80% of the end on, a rating says "like".

    Source:
        Geng et al., RecSys 2022 (P5): of 1 to 5 stars, 4 and 5 are "like"; the share is ours, to
        carry the same line to other scales.
    """
    return corpus.remember("ratings", lambda: _read_ratings(corpus))


def _read_ratings(corpus: Corpus) -> Ratings:
    values = corpus.event_numbers("rating")
    known = np.isfinite(values)
    level = np.full(len(values), -1, dtype=np.int64)
    levels, found = np.unique(values[known], return_inverse=True)
    if len(levels) < _FEWEST_LEVELS:
        return Ratings(level, [], [], CleanText(""), CleanText(""))
    level[known] = found
    top = next((end for end in _TOPS if end >= levels[-1]), float(levels[-1]))
    return Ratings(
        level,
        [_write_rating(value) for value in levels.tolist()],
        (levels >= _LIKED_SHARE * top).tolist(),
        _write_rating(min(1.0, float(levels[0]))),
        _write_rating(top),
    )


def _write_rating(value: float) -> CleanText:
    """A rating without the zeros that storing it as a float added."""
    return CleanText(f"{value:g}")


def _find_rated(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return read_ratings(corpus).level[subjects] >= 0


def _read_rating(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    ratings = read_ratings(corpus)
    return list(ratings.write(ratings.level[subjects]))


def _read_opinion(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    ratings = read_ratings(corpus)
    words = [CleanText("like" if liked else "dislike") for liked in ratings.liked]
    words.append(CleanText(""))
    return [words[place] for place in ratings.level[subjects].tolist()]


def _read_lowest(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return [read_ratings(corpus).lowest] * len(subjects)


def _read_highest(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return [read_ratings(corpus).highest] * len(subjects)


RATING = Field(_read_rating, _find_rated)
OPINION = Field(_read_opinion, _find_rated)

SCALE_FIELDS = {
    "lowest": Field(_read_lowest, _find_rated),
    "highest": Field(_read_highest, _find_rated),
}
"""Where the scale of ratings begins and ends."""


def _ask_level(corpus: Corpus, subjects: IndexArray) -> tuple[NDArray[np.bool_], IndexArray]:
    """Whether the true rating is asked about, as for every second row, and which rating is."""
    ratings = read_ratings(corpus)
    level = ratings.level[subjects]
    true = draw_below(corpus.seed, "rating-check", subjects, 2)[:, 0] == 1
    n_others = max(len(ratings.levels) - 1, 1)
    other = draw_below(corpus.seed, "rating-check-other", subjects, n_others)[:, 0]
    other += other >= level
    return true, np.where(true | (level < 0), level, other)


def _read_asked(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return list(read_ratings(corpus).write(_ask_level(corpus, subjects)[1]))


def _read_answer(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return write_answers(_ask_level(corpus, subjects)[0])


def write_answers(true: NDArray[np.bool_]) -> list[str]:
    """(R,) bool as Yes and No, the words of every task that asks whether."""
    yes, no = CleanText("Yes"), CleanText("No")
    return [yes if is_true else no for is_true in true.tolist()]


_SHOWN = {**ITEM_FIELDS, **PAST_FIELDS, **USER_FIELDS, **SCALE_FIELDS}

RATING_TASKS: dict[str, Task] = {
    "rating": Task(find_places, find_walkers, _SHOWN, {"rating": RATING, "opinion": OPINION}),
    "rating-check": Task(
        find_places,
        find_walkers,
        {**_SHOWN, "asked_rating": Field(_read_asked, _find_rated)},
        {"answer": Field(_read_answer, _find_rated)},
    ),
}

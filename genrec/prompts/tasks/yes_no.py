"""Yes-or-no rows: will the user choose this item? A subject is a place in the walks.

Every second row, by chance, offers the item that was chosen there, and the others one that the
user did not choose in training. Owns which item a row offers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.chance import draw_below
from genrec.prompts.corpus import Corpus
from genrec.prompts.negatives import count_spare, draw_negatives
from genrec.prompts.recipe import Template
from genrec.prompts.render import UNTITLED, CleanText
from genrec.prompts.tasks.places import PAST_FIELDS, USER_FIELDS, find_places
from genrec.prompts.tasks.ratings import write_answers
from genrec.prompts.tasks.sequential import find_chosen, find_targets, find_walkers
from genrec.prompts.tasks.task import ITEM_COLUMNS, Field, Task
from genrec.types import IndexArray


def _is_chosen(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return np.asarray(draw_below(corpus.seed, "yes-no", subjects, 2)[:, 0] == 1)


def find_offered(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R,) the item that each row asks about: the chosen one where the answer is Yes."""
    offered = find_chosen(corpus, subjects).copy()
    wrong = ~_is_chosen(corpus, subjects)
    offered[wrong] = draw_negatives(corpus, "yes-no-item", subjects[wrong], 1)[:, 0]
    return offered


def has_spare(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    """(R,) whether there is an item that the user has not chosen."""
    return count_spare(corpus, subjects) > 0


def has_titled_spare(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    """(R,) the same, and the catalogue has titles; an item without one is called untitled."""
    return has_spare(corpus, subjects) & any(corpus.texts("title"))


def _read_sid(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return [corpus.sids[item] for item in find_offered(corpus, subjects).tolist()]


def _offered_column(column: str) -> Field:
    """A column of the offered item.

    Which item that is differs from pass to pass, so that a row has a value only where every item
    has one; a template that can do without names the field as optional.
    """

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = corpus.texts(column)
        return [texts[item] for item in find_offered(corpus, subjects).tolist()]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return has_spare(corpus, subjects) & all(corpus.texts(column))

    return Field(read, find_filled)


def _read_title(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles = corpus.texts("title")
    untitled = CleanText(UNTITLED)
    return [titles[item] or untitled for item in find_offered(corpus, subjects).tolist()]


def _read_answer(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return write_answers(_is_chosen(corpus, subjects))


_OFFERED: dict[str, Field] = {
    **{column: _offered_column(column) for column in ITEM_COLUMNS},
    "title": Field(_read_title, has_titled_spare),
    "sid": Field(_read_sid, has_spare, trusted=True),
}
_SHOWN = {**_OFFERED, **PAST_FIELDS, **USER_FIELDS}
_ANSWER = {"answer": Field(_read_answer, has_spare)}

YES_NO_TASKS: dict[str, Task] = {
    "next-yes-no": Task(find_targets, find_walkers, _SHOWN, _ANSWER),
    "direct-yes-no": Task(find_places, find_walkers, _SHOWN, _ANSWER),
}
"""With a history; and for a user by name, the first choice included."""

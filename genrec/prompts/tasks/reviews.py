"""Review rows: a training review to its title, to its rating, and back to its text.

A subject is a place in the walks. The rating and the review are of that choice; data without
reviews have none of these rows. Owns which titles say anything beside the text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.tasks.places import (
    ITEM_FIELDS,
    PAST_FIELDS,
    USER_FIELDS,
    ReadTexts,
    event_field,
    find_places,
)
from genrec.prompts.tasks.ratings import OPINION, RATING, SCALE_FIELDS
from genrec.prompts.tasks.sequential import find_walkers
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

REVIEW_TEXT = event_field("review_text")
REVIEW_TITLE = event_field("review_title")

_PUNCTUATION = string.punctuation + string.whitespace


def title_apart(name: str, read_texts: ReadTexts) -> Field:
    """The review's title, only where the text does not repeat it whole: no answer is copied.

    Args:
        name: of the texts.
        read_texts: the texts that the title stands beside, by place in the walks.
    """

    def compare(corpus: Corpus) -> NDArray[np.bool_]:
        titles = _bare_all(corpus.event_texts("review_title"))
        texts = _bare_all(read_texts(corpus))
        pairs = zip(titles, texts, strict=True)
        return np.array([bool(title) and title != text for title, text in pairs], dtype=np.bool_)

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return corpus.remember(f"reviews.apart.{name}", lambda: compare(corpus))[subjects]

    return Field(REVIEW_TITLE.read, find_filled)


def _bare_all(texts: Sequence[str]) -> list[str]:
    return [text.casefold().strip(_PUNCTUATION) for text in texts]


_TITLE_APART = title_apart("text", lambda corpus: corpus.event_texts("review_text"))
_SHOWN = {**ITEM_FIELDS, **PAST_FIELDS, **USER_FIELDS}

REVIEW_TASKS: dict[str, Task] = {
    "review-title": Task(
        find_places,
        find_walkers,
        {**_SHOWN, "review_text": REVIEW_TEXT, "rating": RATING},
        {"review_title": _TITLE_APART},
    ),
    "review-rating": Task(
        find_places,
        find_walkers,
        {**_SHOWN, **SCALE_FIELDS, "review_text": REVIEW_TEXT, "review_title": REVIEW_TITLE},
        {"rating": RATING, "opinion": OPINION},
    ),
    "review-text": Task(
        find_places,
        find_walkers,
        {**_SHOWN, "review_title": _TITLE_APART, "rating": RATING},
        {"review_text": REVIEW_TEXT},
    ),
}

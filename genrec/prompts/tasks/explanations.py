"""Explanation rows: why a user chose an item, in the user's words or by what it shares with others.

A subject is a place in the walks. Owns what counts as an explanation: a sentence of the training
review of that choice, or the brand or kind of an earlier choice of the same user.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
from genrec.prompts.render import CleanText
from genrec.prompts.tasks.places import (
    ITEM_FIELDS,
    PAST_FIELDS,
    USER_FIELDS,
    filled_where,
    find_places,
)
from genrec.prompts.tasks.ratings import RATING, SCALE_FIELDS
from genrec.prompts.tasks.reviews import title_apart
from genrec.prompts.tasks.sequential import find_targets, find_walkers
from genrec.prompts.tasks.task import Field, Task, choose
from genrec.prompts.windows import find_windows
from genrec.types import IndexArray

FEWEST_CHARACTERS = 12  # shorter sentences ("Great!", "Love it.") say what was felt, not why
FEWEST_WORDS = 3  # fewer, and the feature word would be most of the explanation
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_WORD = re.compile(r"[^\W\d_]{4,}")
_FEWEST_USES = 2  # a word that one review alone uses is a name or a slip
_PATH_SEPARATOR = " > "
_DEAREST = Template(
    id="dearest",
    task="explain-recommendation",
    source="no wording: its history costs as much as any",
    input="-",
    target="-",
    fields=("history", "history_titles"),
    separator="; ",
)


def find_explanation(review: str) -> CleanText:
    """The first sentence of a cleaned review that is long enough to say why; "" if none is.

    Source:
        Geng et al., RecSys 2022 (P5), take sentences that a tool found to mention a feature of
        the item; the first sentence needs no tool and no list of features.
    """
    for sentence in _SENTENCE_END.split(review):
        stripped = sentence.strip()
        if len(stripped) >= FEWEST_CHARACTERS:
            return CleanText(stripped)
    return CleanText("")


def read_explanations(corpus: Corpus) -> list[CleanText]:
    """The explanation of every choice, by place in the walks."""
    return corpus.remember(
        "explanations.texts",
        lambda: [find_explanation(review) for review in corpus.event_texts("review_text")],
    )


def read_features(corpus: Corpus) -> list[CleanText]:
    """A word for each explanation to be about: the rarest that another has too; the first of many.

    Short explanations have none, because the word would be most of the answer.
    """
    return corpus.remember("explanations.features", lambda: _choose_features(corpus))


def _choose_features(corpus: Corpus) -> list[CleanText]:
    words = [
        list(dict.fromkeys(_WORD.findall(text.lower()))) if _is_long(text) else []
        for text in read_explanations(corpus)
    ]
    uses = Counter(word for row in words for word in row)
    shared = [[word for word in row if uses[word] >= _FEWEST_USES] for row in words]
    return [CleanText(min(row, key=uses.__getitem__) if row else "") for row in shared]


def _is_long(text: str) -> bool:
    return len(text.split()) >= FEWEST_WORDS


def _read_explanation(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    texts = read_explanations(corpus)
    return [texts[place] for place in subjects.tolist()]


def _read_feature(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    words = read_features(corpus)
    return [words[place] for place in subjects.tolist()]


EXPLANATION = Field(_read_explanation, filled_where("explanations.texts", read_explanations))
FEATURE = Field(_read_feature, filled_where("explanations.features", read_features))


def find_mates(corpus: Corpus, column: str) -> IndexArray:
    """(M,) for each place in the walks the latest earlier one of a like item; -1 without one.

    Like items have the same value in a column of the catalogue and are not the same item. Only
    choices that a row shows count: the last `max_history`, and within `max_history_tokens` those
    that fit with ids and titles both, so that no wording names an item that it does not show.
    """
    return corpus.remember(f"explanations.mates.{column}", lambda: _find_mates(corpus, column))


def _find_mates(corpus: Corpus, column: str) -> IndexArray:
    walks = corpus.walks
    _, code = np.unique(np.array(corpus.texts(column), dtype=object), return_inverse=True)
    keys = walks.owner * len(corpus.sids) + code[walks.item_index]
    order = np.argsort(keys, kind="stable")
    before, after = order[:-1], order[1:]
    filled = np.fromiter(map(bool, corpus.texts(column)), dtype=np.bool_)
    alike = (
        (keys[before] == keys[after])
        & filled[walks.item_index[after]]
        & (walks.item_index[before] != walks.item_index[after])
        & (after - before <= corpus.max_history)
    )
    mates = np.full(len(keys), -1, dtype=np.int64)
    mates[after[alike]] = before[alike]
    if corpus.recipe.max_history_tokens is not None:
        starts = find_windows(corpus, _DEAREST, np.arange(len(keys), dtype=np.int64))
        mates[mates < starts] = -1
    return mates


def _mate_fields(column: str, name: str) -> dict[str, Field]:
    """What a choice shares with an earlier one, and that one's semantic ids and title."""

    def find_shared(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        return find_mates(corpus, column)[subjects] >= 0

    def find_titled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        titled = np.fromiter(map(bool, corpus.texts("title")), dtype=np.bool_)
        return find_shared(corpus, subjects) & titled[_find_mate_items(corpus, subjects)]

    def _find_mate_items(corpus: Corpus, subjects: IndexArray) -> IndexArray:
        return corpus.walks.item_index[np.maximum(find_mates(corpus, column)[subjects], 0)]

    def read_shared(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        values = corpus.texts(column)
        items = corpus.walks.item_index[subjects].tolist()
        return [CleanText(values[item].rpartition(_PATH_SEPARATOR)[2]) for item in items]

    def read_sid(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        return [corpus.sids[item] for item in _find_mate_items(corpus, subjects).tolist()]

    def read_title(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        titles = corpus.texts("title")
        return [titles[item] for item in _find_mate_items(corpus, subjects).tolist()]

    return {
        f"shared_{name}": Field(read_shared, find_shared),
        f"{name}_mate": Field(read_sid, find_shared, trusted=True),
        f"{name}_mate_title": Field(read_title, find_titled),
    }


_SHOWN = {**ITEM_FIELDS, **PAST_FIELDS, **USER_FIELDS, "feature": FEATURE}

EXPLANATION_TASKS: dict[str, Task] = {
    "explanation": Task(
        find_places,
        find_walkers,
        {**_SHOWN, "rating": RATING, "review_title": title_apart("explanation", read_explanations)},
        {"explanation": EXPLANATION},
    ),
    "rating-explanation": Task(
        find_places,
        find_walkers,
        {**_SHOWN, **SCALE_FIELDS},
        {"rating": RATING, "explanation": EXPLANATION},
    ),
    # The item's brand and kind are in the answer, so that they are not in the question.
    "explain-recommendation": Task(
        find_targets,
        find_walkers,
        {**PAST_FIELDS, **USER_FIELDS, **choose(ITEM_FIELDS, "sid", "title")},
        {
            "explanation": EXPLANATION,
            **_mate_fields("brand", "brand"),
            **_mate_fields("categories", "kind"),
        },
    ),
}

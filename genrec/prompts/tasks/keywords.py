"""Keyword rows: who has little history tells a few words instead, and those lead to items.

A subject is the place of the target in the walks. A user's keywords are of what the user wrote
before that place, or of the items' own texts where nothing was written; the target's review is in
no count.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.keywords import (
    find_item_keywords,
    find_terms,
    find_worded,
    read_range_keywords,
    sum_ranges,
)
from genrec.prompts.recipe import Template
from genrec.prompts.render import UNTITLED, CleanText, join_sids, join_titles
from genrec.prompts.tasks.candidates import CANDIDATE_TASKS, find_candidates
from genrec.prompts.tasks.past import any_within, find_past
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, choose, item_field, sid_field
from genrec.types import IndexArray

RANKED_ITEMS = 5
"""How many candidates an ordered answer names: 20 tokens with ids of four."""


def _read_user_keywords(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return list(read_range_keywords(corpus, *find_past(corpus, subjects)))


def _find_user_keywords(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return any_within(find_worded(corpus), *find_past(corpus, subjects))


def _read_candidates(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    """Each candidate by number, title and keywords."""
    titles, keywords = corpus.texts("title"), find_item_keywords(corpus)

    def name(number: int, item: int) -> str:
        words = keywords[item]
        return f"{number}. {titles[item] or UNTITLED}" + (f" ({words})" if words else "")

    return [
        CleanText(
            template.separator.join(
                name(number, item) for number, item in enumerate(row, start=1) if item >= 0
            )
        )
        for row in find_candidates(corpus, subjects).tolist()
    ]


def _rank_candidates(corpus: Corpus, subjects: IndexArray) -> Iterator[list[int]]:
    """The chosen item, then the candidates whose own words are most like the user's.

    Which of the wrong ones is better nobody said; likeness of words is the only label that there
    is. Ties keep the order in which candidates are offered.
    """
    terms = find_terms(corpus)
    own = corpus.remember("keywords.own-weights", lambda: terms.weigh(terms.own))
    users = terms.weigh(sum_ranges(corpus, *find_past(corpus, subjects)))
    right = find_chosen(corpus, subjects).tolist()
    for row, items in enumerate(find_candidates(corpus, subjects)):
        offered = items[items >= 0]
        likeness = (own[offered] @ users[row].T).toarray().ravel()
        ranked = offered[np.argsort(-likeness, kind="stable")].tolist()
        yield [right[row], *(item for item in ranked if item != right[row])][:RANKED_ITEMS]


def _read_ranked(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    return [
        join_sids([corpus.sids[item] for item in items], template.separator)
        for items in _rank_candidates(corpus, subjects)
    ]


def _read_ranked_titles(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    titles = corpus.texts("title")
    return [
        join_titles([titles[item] for item in items], template.separator)
        for items in _rank_candidates(corpus, subjects)
    ]


_CHOICE = CANDIDATE_TASKS["next-choice"]
_OFFERED = choose(_CHOICE.input_fields, "candidates", "candidate_titles", "candidates_numbered")
_USER_KEYWORDS = Field(_read_user_keywords, _find_user_keywords)
_ITEM = {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)}

KEYWORD_TASKS: dict[str, Task] = {
    "history-to-keywords": Task(
        find_targets, find_walkers, HISTORY_FIELDS, {"user_keywords": _USER_KEYWORDS}
    ),
    "keywords-to-item": Task(find_targets, find_walkers, {"user_keywords": _USER_KEYWORDS}, _ITEM),
    "keyword-rerank": Task(
        _CHOICE.find_subjects,
        find_walkers,
        {
            **_OFFERED,
            "user_keywords": _USER_KEYWORDS,
            "candidate_keywords": Field(_read_candidates, _OFFERED["candidate_titles"].find_filled),
        },
        {
            **_ITEM,
            "ranked": Field(_read_ranked, _OFFERED["candidates"].find_filled, trusted=True),
            "ranked_titles": Field(_read_ranked_titles, _OFFERED["candidate_titles"].find_filled),
        },
    ),
}

"""Rows of several domains: the next item of a named domain, from a history that mixes them.

A domain is the items' extra column `domain`; without it every template here is off. A subject is
the place of the target in the walks. A history falls into the part of the target's domain and the
rest; either may be empty, so templates make both optional.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
from genrec.prompts.render import CleanText, join_sids, join_titles
from genrec.prompts.tasks.past import any_within, find_starts
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, item_field, sid_field
from genrec.prompts.windows import find_histories
from genrec.types import IndexArray

DOMAIN_COLUMN = "domain"
_Join = Callable[[Corpus, list[int], str], str]


def _join_ids(corpus: Corpus, items: list[int], separator: str) -> str:
    return join_sids([corpus.sids[item] for item in items], separator)


def _join_names(corpus: Corpus, items: list[int], separator: str) -> str:
    titles = corpus.texts("title")
    return join_titles([titles[item] for item in items], separator)


def _number_domains(corpus: Corpus) -> IndexArray:
    """(N,) a number for each item's domain, 0 for none."""

    def number() -> IndexArray:
        _, numbers = np.unique([*corpus.texts(DOMAIN_COLUMN), ""], return_inverse=True)
        return np.asarray(numbers[:-1], dtype=np.int64)

    return corpus.remember("domains.numbers", number)


def _part(inside: bool, join: _Join, *, trusted: bool) -> Field:
    """The shown history's items of the target's domain, or those of the others."""

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        domains = _number_domains(corpus)
        wanted = domains[find_chosen(corpus, subjects)].tolist()
        histories = find_histories(corpus, template, subjects)
        return [
            join(
                corpus,
                [item for item in items if (domains[item] == domain) == inside],
                template.separator,
            )
            for items, domain in zip(histories, wanted, strict=True)
        ]

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        places = _number_domains(corpus)[corpus.walks.item_index]
        starts = np.maximum(find_starts(corpus, subjects), subjects - corpus.max_history)
        found = np.zeros(len(subjects), dtype=np.bool_)
        for domain in np.unique(places).tolist():
            rows = places[subjects] == domain
            flags = (places == domain) == inside
            found[rows] = any_within(flags, starts[rows], subjects[rows])
        return found

    return Field(read, find_filled, trusted=trusted)


def _read_domains(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
    names = corpus.texts(DOMAIN_COLUMN)
    return [
        CleanText(", ".join(names[item] or "other" for item in items))
        for items in find_histories(corpus, template, subjects)
    ]


def _find_named(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
    return np.full(len(subjects), any(corpus.texts(DOMAIN_COLUMN)), dtype=np.bool_)


_DOMAIN = item_field(DOMAIN_COLUMN, find_chosen)
_MIXED = {**HISTORY_FIELDS, "history_domains": Field(_read_domains, _find_named)}
_ANSWER = {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)}

DOMAIN_TASKS: dict[str, Task] = {
    "domain-sequential": Task(
        find_targets,
        find_walkers,
        {
            **_MIXED,
            "domain": _DOMAIN,
            "history_inside": _part(True, _join_ids, trusted=True),
            "history_outside": _part(False, _join_ids, trusted=True),
            "history_titles_inside": _part(True, _join_names, trusted=False),
            "history_titles_outside": _part(False, _join_names, trusted=False),
        },
        _ANSWER,
    ),
    "next-domain": Task(find_targets, find_walkers, _MIXED, {"domain": _DOMAIN}),
}

"""Rows in several languages: the next item or its title, in the language of the item's shop.

A shop is the items' extra column `locale`. Each language has answer fields of its own that are
filled only for items of its shops, and so a template in that language is on only there. A subject
is the place of the target in the walks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Field, Task, item_field, sid_field
from genrec.types import IndexArray

LOCALE_COLUMN = "locale"
LANGUAGES: dict[str, frozenset[str]] = {
    "en": frozenset({"en", "uk", "gb", "us", "au", "in"}),
    "de": frozenset({"de", "at"}),
    "ja": frozenset({"ja", "jp"}),
    "es": frozenset({"es", "mx"}),
    "fr": frozenset({"fr"}),
    "it": frozenset({"it"}),
}
"""For each language the locales that write it; of `de-CH` or `de_CH` only the first part counts."""


def _find_items_of(corpus: Corpus, language: str) -> NDArray[np.bool_]:
    """(N,) whether each item is from a shop of the language."""
    known = LANGUAGES[language]

    def find() -> NDArray[np.bool_]:
        firsts = (
            text.replace("_", "-").partition("-")[0].lower() for text in corpus.texts(LOCALE_COLUMN)
        )
        return np.fromiter((first in known for first in firsts), dtype=np.bool_)

    return corpus.remember(f"locales.{language}", find)


def only_in(language: str, field: Field) -> Field:
    """The field, empty for every subject whose chosen item is not from a shop of the language."""

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        spoken = _find_items_of(corpus, language)[find_chosen(corpus, subjects)]
        found: NDArray[np.bool_] = spoken & field.find_filled(corpus, subjects)
        return found

    return Field(field.read, find_filled, field.trusted)


_TITLE, _SID = item_field("title", find_chosen), sid_field(find_chosen)

LOCALE_TASKS: dict[str, Task] = {
    "next-title": Task(
        find_targets,
        find_walkers,
        HISTORY_FIELDS,
        {"title": _TITLE, **{f"title_{name}": only_in(name, _TITLE) for name in LANGUAGES}},
    ),
    "next-in-locale": Task(
        find_targets,
        find_walkers,
        {**HISTORY_FIELDS, "locale": item_field(LOCALE_COLUMN, find_chosen)},
        {f"sid_{name}": only_in(name, _SID) for name in LANGUAGES},
    ),
}

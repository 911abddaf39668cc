"""Rows that offer items to choose from: one of many, one of two, or a list to put in order.

A subject is a place in the walks; what was chosen there is the right answer, and stands at any
place among the wrong ones alike. Owns what a row offers and in which order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.chance import draw_numbers
from genrec.prompts.corpus import Corpus
from genrec.prompts.negatives import count_choices, draw_negatives
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import UNTITLED, CleanText, join_sids, join_titles
from genrec.prompts.tasks.places import PAST_FIELDS, USER_FIELDS, find_places
from genrec.prompts.tasks.sequential import find_chosen, find_targets, find_walkers
from genrec.prompts.tasks.task import Field, FindFilled, Task, item_field, sid_field
from genrec.prompts.tasks.yes_no import has_spare
from genrec.types import IndexArray

FindLists = Callable[[Corpus, IndexArray], IndexArray]
FindSubjects = Callable[[Corpus, PromptsRecipe], IndexArray]

LIST_ITEMS = 6  # the answer names them all: 24 tokens with ids of four
LIST_CHOSEN = 3
_log = logging.getLogger(__name__)


def find_candidates(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, C) the items to choose from, the right one among them; -1 at the end where fewer."""
    return _find_options(corpus, "candidates", subjects, corpus.recipe.candidates)


def find_pairs(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, 2) two items, one of which is the right one."""
    return _find_options(corpus, "pair", subjects, 2)


def _find_options(corpus: Corpus, purpose: str, subjects: IndexArray, n: int) -> IndexArray:
    right = find_chosen(corpus, subjects)[:, None]
    wrong = draw_negatives(corpus, purpose, subjects, n - 1)
    return _shuffle(corpus, purpose, subjects, np.concatenate([right, wrong], axis=1))


def _shuffle(corpus: Corpus, purpose: str, subjects: IndexArray, items: IndexArray) -> IndexArray:
    """Each row in an order drawn for it, its -1 last."""
    numbers = draw_numbers(corpus.seed, f"{purpose}-order", subjects, items.shape[1])
    numbers = np.where(items < 0, np.iinfo(np.uint64).max, numbers >> np.uint64(1))
    return np.take_along_axis(items, np.argsort(numbers, axis=1), axis=1)


def find_next_choices(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, 3) the item chosen at each place and the user's next ones in training; -1 where none.

    An item that comes again among them counts once.
    """
    walks = corpus.walks
    ends = walks.offsets[1:][walks.owner[subjects]]
    chosen = np.full((len(subjects), LIST_CHOSEN), -1, dtype=np.int64)
    for step in range(LIST_CHOSEN):
        there = subjects + step < ends
        items = walks.item_index[np.where(there, subjects + step, subjects)]
        new = there & ~(chosen[:, :step] == items[:, None]).any(axis=1)
        chosen[new, step] = items[new]
    return _push_left(chosen)


def _push_left(items: IndexArray) -> IndexArray:
    return np.take_along_axis(items, np.argsort(items < 0, axis=1, kind="stable"), axis=1)


def find_rankings(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, 6) a list in its right order, -1 at the end where shorter.

    First what the user chose at the place and next, in that order; then the wrong ones, more often
    chosen by everybody first, which is a weak label but the only one that the data give.
    """
    chosen = find_next_choices(corpus, subjects)
    wrong = draw_negatives(corpus, "list", subjects, LIST_ITEMS - 1)
    n_wrong = LIST_ITEMS - (chosen >= 0).sum(axis=1)
    wrong[np.arange(LIST_ITEMS - 1) >= n_wrong[:, None]] = -1
    # Without a wrong one, its count is below any: -1 stays last.
    counts = np.where(wrong < 0, -1, count_choices(corpus)[wrong])
    ordered = np.take_along_axis(wrong, np.argsort(-counts, axis=1, kind="stable"), axis=1)
    return _push_left(np.concatenate([chosen, ordered], axis=1))[:, :LIST_ITEMS]


def find_lists(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R, 6) the items of `find_rankings` in an order drawn for each row."""
    return _shuffle(corpus, "list", subjects, find_rankings(corpus, subjects))


def _find_list_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Whose list it is, and the last of the choices in it, so that none comes after it."""
    chosen = find_next_choices(corpus, subjects)
    last = chosen[np.arange(len(subjects)), (chosen >= 0).sum(axis=1) - 1]
    return find_walkers(corpus, subjects)[0], last


def _find_list_subjects(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    """The places with enough history and two choices to put in order; a user's last if so asked."""
    every = recipe.model_copy(update={"targets": "sliding"})
    places = find_targets(corpus, every)
    places = places[find_next_choices(corpus, places)[:, 1] >= 0]
    if recipe.targets == "last":
        owners = corpus.walks.owner[places]
        places = places[np.append(owners[1:] != owners[:-1], True)[: len(places)]]
    return places


def _read_sids(find: FindLists) -> Field:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        sids, separator = corpus.sids, template.separator
        return [
            join_sids([sids[item] for item in row if item >= 0], separator)
            for row in find(corpus, subjects).tolist()
        ]

    return Field(read, has_spare, trusted=True)


def _find_right(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return find_chosen(corpus, subjects)[:, None]


def _find_lone(corpus: Corpus) -> NDArray[np.bool_]:
    """(N + 1,) whether each item alone has its title; true at the end, where -1 leads."""
    titles = corpus.texts("title")
    uses = Counter(titles)
    return np.array([*(bool(text) and uses[text] == 1 for text in titles), True], dtype=np.bool_)


def _has_lone_titles(find: FindLists) -> FindFilled:
    """Whether titles tell the right items from the others: one that comes twice has no answer."""

    def find_filled(corpus: Corpus, subjects: IndexArray) -> NDArray[np.bool_]:
        lone = corpus.remember("candidates.lone", lambda: _find_lone(corpus))
        told = lone[find(corpus, subjects)].all(axis=1)
        return np.asarray(has_spare(corpus, subjects) & told, dtype=np.bool_)

    return find_filled


def _read_titles(find: FindLists, find_right: FindLists = _find_right) -> Field:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        titles, separator = corpus.texts("title"), template.separator
        return [
            join_titles([titles[item] for item in row if item >= 0], separator)
            for row in find(corpus, subjects).tolist()
        ]

    return Field(read, _has_lone_titles(find_right))


def _read_numbered(find: FindLists, find_right: FindLists) -> Field:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        titles, separator = corpus.texts("title"), template.separator
        return [
            CleanText(
                separator.join(
                    f"{number}. {titles[item] or UNTITLED}"
                    for number, item in enumerate(row, start=1)
                    if item >= 0
                )
            )
            for row in find(corpus, subjects).tolist()
        ]

    return Field(read, _has_lone_titles(find_right))


def _read_place(find: FindLists, names: list[str]) -> Field:
    """The name of the place where the right answer stands."""
    texts = [CleanText(name) for name in names]

    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        right = find(corpus, subjects) == find_chosen(corpus, subjects)[:, None]
        return [texts[place] for place in right.argmax(axis=1).tolist()]

    return Field(read, has_spare)


def _take(find: FindLists, column: int) -> FindLists:
    return lambda corpus, subjects: find(corpus, subjects)[:, column : column + 1]


def _warn_few(find: FindSubjects) -> FindSubjects:
    """The same subjects, after a warning where the catalogue is smaller than `candidates`."""

    def find_subjects(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
        if recipe.candidates > len(corpus.sids):
            _log.warning(
                "candidates: %d, but the catalogue has %d items: rows offer as many as the user "
                "has not chosen, and the right one",
                recipe.candidates,
                len(corpus.sids),
            )
        return find(corpus, recipe)

    return find_subjects


def _list_fields(find: FindLists, find_right: FindLists = _find_right) -> dict[str, Field]:
    return {
        "candidates": _read_sids(find),
        "candidate_titles": _read_titles(find, find_right),
        "candidates_numbered": _read_numbered(find, find_right),
    }


_WHO = {**PAST_FIELDS, **USER_FIELDS}
_RIGHT = {"sid": sid_field(find_chosen), "title": item_field("title", find_chosen)}
_CHOICE = {**_RIGHT, "number": _read_place(find_candidates, [str(n) for n in range(1, 1001)])}
_CANDIDATES = {**_WHO, **_list_fields(find_candidates)}

CANDIDATE_TASKS: dict[str, Task] = {
    "next-choice": Task(_warn_few(find_targets), find_walkers, _CANDIDATES, _CHOICE),
    "direct-choice": Task(_warn_few(find_places), find_walkers, _CANDIDATES, _CHOICE),
    "pairwise": Task(
        find_targets,
        find_walkers,
        {
            **_WHO,
            "first": _read_sids(_take(find_pairs, 0)),
            "second": _read_sids(_take(find_pairs, 1)),
            "first_title": _read_titles(_take(find_pairs, 0)),
            "second_title": _read_titles(_take(find_pairs, 1)),
        },
        {**_RIGHT, "letter": _read_place(find_pairs, ["A", "B"])},
    ),
    "listwise": Task(
        _find_list_subjects,
        _find_list_owners,
        {**_WHO, **_list_fields(find_lists, find_next_choices)},
        {
            "ranked": _read_sids(find_rankings),
            "ranked_titles": _read_titles(find_rankings, find_next_choices),
            "chosen": _read_sids(find_next_choices),
            "chosen_titles": _read_titles(find_next_choices, find_next_choices),
        },
    ),
}
"""One of many with a history, and for a user by name; one of two; a list."""

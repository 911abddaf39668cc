"""Complementary rows: an item to the one that training users took right after it most often.

A subject is the item_index of the first item. Pairs that occur fewer than `FEWEST_PAIRS` times say
nothing, so most items of a sparse log have no row.
"""

from __future__ import annotations

import numpy as np

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.tasks.task import ITEM_COLUMNS, Task, item_field, sid_field
from genrec.types import IndexArray

FEWEST_PAIRS = 3


def find_followers(corpus: Corpus) -> IndexArray:
    """(N,) the item_index that most often follows each item in the walks, -1 for none.

    Of followers that are equally frequent the one first in the catalogue counts; an item does not
    follow itself.
    """
    return corpus.remember("complementary.followers", lambda: _count_pairs(corpus))


def _count_pairs(corpus: Corpus) -> IndexArray:
    walks, n_items = corpus.walks, len(corpus.sids)
    first, second = walks.item_index[:-1], walks.item_index[1:]
    real = (walks.owner[:-1] == walks.owner[1:]) & (first != second)
    pairs, counts = np.unique(first[real] * n_items + second[real], return_counts=True)
    frequent = counts >= FEWEST_PAIRS
    pairs, counts = pairs[frequent], counts[frequent]
    leaders, followers = np.divmod(pairs, n_items)
    found = np.full(n_items, -1, dtype=np.int64)
    # The last of an item's writes stays: its most frequent pair, and of those the lowest index.
    order = np.lexsort((-followers, counts))
    found[leaders[order]] = followers[order]
    return found


def _find_subjects(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
    return np.flatnonzero(find_followers(corpus) >= 0).astype(np.int64)


def _find_answers(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return find_followers(corpus)[subjects]


def _find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
    return np.full(len(subjects), -1, dtype=np.int64), _find_answers(corpus, subjects)


def _itself(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    return subjects


COMPLEMENTARY_TASKS: dict[str, Task] = {
    "complementary": Task(
        _find_subjects,
        _find_owners,
        {
            "item": sid_field(_itself),
            **{f"item_{column}": item_field(column, _itself) for column in ITEM_COLUMNS},
        },
        {"sid": sid_field(_find_answers), "title": item_field("title", _find_answers)},
    ),
}

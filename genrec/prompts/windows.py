"""How much of a user's past a row shows.

Owns the limits by items and by tokens: the oldest items go first, and an item is shown whole or not
at all. Knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrec.prompts.corpus import Corpus
from genrec.prompts.costs import count_sid_tokens, count_text_tokens, find_form, find_starts
from genrec.prompts.recipe import Template
from genrec.prompts.render import UNTITLED
from genrec.types import IndexArray


def find_windows(corpus: Corpus, template: Template, subjects: IndexArray) -> IndexArray:
    """(R,) where in the walks the shown history of each subject starts; it ends before the subject.

    Args:
        corpus: its walks and limits.
        template: whose text and separator the items are shown with.
        subjects: (R,) places in the walks.
    """
    walks = corpus.walks
    first = walks.offsets[walks.owner[subjects]]
    starts = np.maximum(first, subjects - corpus.max_history)
    most = corpus.recipe.max_history_tokens
    if most is None:
        return starts
    empty = starts == subjects  # the first choice of a walk has no history to cut
    costs, between = _find_costs(corpus, template)
    cut = find_starts(costs, between, subjects, starts, most)
    return np.where(empty, starts, cut)


def find_histories(corpus: Corpus, template: Template, subjects: IndexArray) -> Iterator[list[int]]:
    """The shown items (item_index) before each subject, oldest first."""
    item_index = corpus.walks.item_index
    starts = find_windows(corpus, template, subjects)
    for start, end in zip(starts.tolist(), subjects.tolist(), strict=True):
        yield item_index[start:end].tolist()


def _find_costs(corpus: Corpus, template: Template) -> tuple[IndexArray, int]:
    """(M,) tokens of each choice as the template shows it, and of what stands between two."""
    form = find_form(template)
    costs = np.zeros(len(corpus.sids), dtype=np.int64)
    if form.ids:
        costs += form.ids * corpus.remember("costs.sids", lambda: _count_sids(corpus))
    if form.titles:
        costs += form.titles * corpus.remember("costs.titles", lambda: _count_titles(corpus))
    return costs[corpus.walks.item_index], form.between


def _count_sids(corpus: Corpus) -> IndexArray:
    return np.array([count_sid_tokens(sid) for sid in corpus.sids], dtype=np.int64)


def _count_titles(corpus: Corpus) -> IndexArray:
    titles = [title or UNTITLED for title in corpus.texts("title")]
    return count_text_tokens(titles, corpus.recipe.count_with)

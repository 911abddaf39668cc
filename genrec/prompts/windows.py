"""How much of a user's past a row shows.

Owns the limits by items and by tokens: the oldest items go first, and an item is shown whole or not
at all. Knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import Template
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
    return np.maximum(first, subjects - corpus.max_history)


def find_histories(corpus: Corpus, template: Template, subjects: IndexArray) -> Iterator[list[int]]:
    """The shown items (item_index) before each subject, oldest first."""
    item_index = corpus.walks.item_index
    starts = find_windows(corpus, template, subjects)
    for start, end in zip(starts.tolist(), subjects.tolist(), strict=True):
        yield item_index[start:end].tolist()

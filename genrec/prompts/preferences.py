"""What a user prefers, in words: derived from what the user chose.

Owns the counting of kinds and brands, and the text that names them with keywords. LC-Rec and ULMRec
have a large language model write such texts; a column `preference` of the users table replaces
ours. Knows no task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.corpus import Corpus
from genrec.prompts.keywords import find_worded, read_range_keywords
from genrec.prompts.render import CleanText, clean_text
from genrec.types import IndexArray

MOST_NAMED = 3
"""Kinds and brands that a preference names; keywords are as many as the recipe says."""


def find_kinds(corpus: Corpus) -> list[CleanText]:
    """The last step of each item's category path, in item_index order."""
    paths = corpus.texts("categories")
    return corpus.remember(
        "preferences.kinds", lambda: [CleanText(path.rpartition(" > ")[2]) for path in paths]
    )


def name_most_frequent(
    corpus: Corpus, values: Sequence[CleanText], starts: IndexArray, ends: IndexArray
) -> list[CleanText]:
    """The values that items chosen in each range have most often; ties as first chosen.

    Args:
        corpus: its walks.
        values: one for each item_index, "" for none.
        starts: (R,) places in the walks.
        ends: (R,) places in the walks; a range ends before it.
    """
    items = corpus.walks.item_index
    found = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        counted = Counter(values[item] for item in items[start:end].tolist() if values[item])
        names = [name for name, _ in counted.most_common(MOST_NAMED)]
        found.append(clean_text(", ".join(names), corpus.max_text_characters))
    return found


def describe_ranges(corpus: Corpus, starts: IndexArray, ends: IndexArray) -> list[CleanText]:
    """A preference from the choices in each range: `Hats; products by Acme; the topics red, wool`.

    It reads on after "likes" and stands as an answer alike.

    Args:
        corpus: its walks, items and training reviews.
        starts: (R,) places in the walks.
        ends: (R,) places in the walks; a range ends before it.
    """
    rows: Iterable[tuple[CleanText, CleanText, CleanText]] = zip(
        name_most_frequent(corpus, find_kinds(corpus), starts, ends),
        name_most_frequent(corpus, corpus.texts("brand"), starts, ends),
        read_range_keywords(corpus, starts, ends),
        strict=True,
    )
    return [clean_text("; ".join(_name_parts(*row)), corpus.max_text_characters) for row in rows]


def _name_parts(kinds: str, brands: str, words: str) -> Iterator[str]:
    if kinds:
        yield kinds
    if brands:
        yield f"products by {brands}"
    if words:
        yield f"the {'topics' if ',' in words else 'topic'} {words}"


def find_described(corpus: Corpus) -> NDArray[np.bool_]:
    """(M,) whether the choice at each place gives `describe_ranges` something to say."""
    named = [
        bool(kind or brand)
        for kind, brand in zip(find_kinds(corpus), corpus.texts("brand"), strict=True)
    ]
    found: NDArray[np.bool_] = np.array(named, dtype=np.bool_)[corpus.walks.item_index]
    return found | find_worded(corpus)

"""The catalogue as the playground shows it: items by words, and the tree of codes by prefix.

Owns which items a search box finds and what is said of a prefix. Knows no HTTP and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.catalogue import Catalogue
from genrec.decode.trie import Trie
from genrec.errors import DecodeError

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class FoundItem:
    """An item as a list shows it."""

    item_id: str
    title: str
    sid: str
    categories: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A code that may follow a prefix.

    Attributes:
        code: the code.
        n_items: how many items lie below.
        examples: titles of a few of them.
        item: the item, where the sequence is complete.
    """

    code: int
    n_items: int
    examples: tuple[str, ...]
    item: FoundItem | None


def find_items(catalogue: Catalogue, text: str, limit: int) -> list[FoundItem]:
    """Items whose title holds every word of `text`, or whose id begins with it.

    Those whose id is the text come first, then titles that begin with it, then short titles.
    """
    wanted = text.strip().lower()
    words = wanted.split()
    frame = catalogue.lowered.lazy()
    if words:
        holds = pl.all_horizontal(
            pl.col("title").str.contains(word, literal=True) for word in words
        )
        frame = frame.filter(holds | pl.col("item_id").str.starts_with(wanted))
        frame = frame.sort(
            pl.col("item_id") != wanted,
            ~pl.col("title").str.starts_with(wanted),
            pl.col("title").str.len_chars(),
            "row",
        )
    rows = frame.head(limit).select("row").collect()["row"].to_list()
    return [describe_item(catalogue, row) for row in rows]


def describe_item(catalogue: Catalogue, row: int) -> FoundItem:
    """An item of the catalogue."""
    categories = ""
    if "categories" in catalogue.index.columns:
        categories = catalogue.index["categories"][row] or ""
    return FoundItem(
        catalogue.item_ids[row], catalogue.titles[row], catalogue.sids[row], categories
    )


def list_branches(catalogue: Catalogue, trie: Trie, prefix: Sequence[int]) -> list[Branch]:
    """Every code that may follow a prefix, codes rising.

    Args:
        catalogue: gives titles.
        trie: of the same items.
        prefix: codes, fewer than an item has; none at the top.

    Raises:
        DecodeError: no item has this prefix, or it is complete.
    """
    if len(prefix) >= trie.n_levels:
        raise DecodeError(
            f"a prefix of {len(prefix)} codes has nothing below it: items have {trie.n_levels} "
            f"codes; give fewer"
        )
    children = trie.children(np.array([prefix], dtype=np.int64).reshape(1, len(prefix)))
    level = len(prefix) + 1
    first, end = trie.leaf_ranges(level, children.node)
    branches = []
    for code, start, stop in zip(children.code.tolist(), first.tolist(), end.tolist(), strict=True):
        titles = name_items(catalogue, trie, start, stop)
        item = None
        if level == trie.n_levels:
            item = describe_item(catalogue, int(trie.items(np.array([start]))[0]))
        branches.append(Branch(code, stop - start, titles, item))
    return branches


def name_items(catalogue: Catalogue, trie: Trie, start: int, stop: int) -> tuple[str, ...]:
    """What people call a few of the items at some leaves: their titles, or else their ids."""
    rows = trie.items(np.arange(start, min(stop, start + _EXAMPLES)))
    return tuple(catalogue.titles[row] or catalogue.item_ids[row] for row in rows.tolist())

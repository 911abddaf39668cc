"""Which items a written row names, read back from its text.

Owns finding semantic ids outside text from data, and titles inside it. Knows no split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.dataset import Dataset
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import clean_text
from genrec.types import IndexArray

Slot = Literal["prompt", "target", "question"]
"""Where an item is named; `question` is the row's own item_index."""

LEAST_TITLE_CHARACTERS = 8
"""Shorter titles stand in texts that mean something else."""

_ITEM_ID = r"<a_\d+>(?:<[b-z]_\d+>)*"
_NUMBERED = re.compile(r"^\d+\. ")


class MentionReader:
    """Finds the items in rows."""

    def __init__(
        self,
        recipe: PromptsRecipe,
        dataset: Dataset,
        sids: Sequence[str],
        templates: Sequence[Template],
    ) -> None:
        """Make the tables by which ids and titles are looked up."""
        self._sids = pa.array(sids, pa.large_string())
        self._titles = _name_titles(recipe, dataset)
        self._separators = {template.id: template.separator for template in templates}

    def read(self, table: pa.Table) -> Iterator[tuple[Slot, IndexArray, IndexArray]]:
        """Row numbers and item_index of every mention, slot by slot."""
        names = table["template"].to_numpy(zero_copy_only=False)
        slots: tuple[Literal["prompt", "target"], ...] = ("prompt", "target")
        for slot in slots:
            texts, titled_rows, titled_items = self._split_data(table, slot, names)
            rows, items = self._find_ids(texts)
            named = np.array([titled_rows, titled_items], dtype=np.int64)
            yield slot, np.append(rows, named[0]), np.append(items, named[1])
        asked = table["item_index"].to_numpy()
        rows = np.flatnonzero(asked >= 0)
        yield "question", rows, asked[rows]

    def _split_data(
        self, table: pa.Table, slot: str, names: np.ndarray
    ) -> tuple[pl.Series, list[int], list[int]]:
        """The texts with all data blanked out, and the items whose titles stood in the data."""
        texts = pl.Series(table[slot])
        spans = pl.Series(table[f"{slot}_spans"])
        rows: list[int] = []
        items: list[int] = []
        marked = np.flatnonzero(spans.list.len().to_numpy() > 0)
        blank: list[str] = []
        chosen = texts.gather(marked).to_list(), spans.gather(marked).to_list()
        for row, text, ranges in zip(marked.tolist(), *chosen, strict=True):
            separator = self._separators[names[row]]
            bare, position = [], 0
            for start, end in ranges:
                bare.append(text[position:start])
                position = end
                found = self._find_titles(text[start:end], separator)
                items += found
                rows += [row] * len(found)
            bare.append(text[position:])
            blank.append(" ".join(bare))
        if len(marked):
            texts = texts.clone().scatter(marked, blank)
        return texts, rows, items

    def _find_titles(self, text: str, separator: str) -> list[int]:
        titles = self._titles
        parts = text.split(separator) if separator and separator in text else [text]
        found = [titles.get(_NUMBERED.sub("", part)) for part in parts]
        return [item for item in found if item is not None]

    def _find_ids(self, texts: pl.Series) -> tuple[IndexArray, IndexArray]:
        found = texts.str.extract_all(_ITEM_ID)
        ids = found.explode(empty_as_null=False).to_arrow()
        items = pc.index_in(ids, value_set=self._sids.cast(ids.type)).fill_null(-1).to_numpy()
        rows = np.repeat(np.arange(len(texts)), found.list.len().to_numpy())
        return rows[items >= 0], items[items >= 0].astype(np.int64)


def _list_other_texts(dataset: Dataset, most: int) -> set[str]:
    """Texts that rows show beside titles: a review may be headed by the name of an item."""
    columns = [dataset.items[name] for name in ("brand", "categories") if name in dataset.items]
    if dataset.has_reviews:
        columns.append(dataset.reviews()["review_title"])
    return {clean_text(text, most) for column in columns for text in column.unique() if text}


def _name_titles(recipe: PromptsRecipe, dataset: Dataset) -> dict[str, int]:
    """Items by title, as rows write it, where one item only has it and it is long enough."""
    if "title" not in dataset.items.columns:
        return {}
    most = recipe.max_text_characters
    titles = [clean_text(title or "", most) for title in dataset.items["title"].to_list()]
    named: dict[str, int] = {}
    twice = _list_other_texts(dataset, most)
    for item, title in enumerate(titles):
        if title in named:
            twice.add(title)
        named[title] = item
    return {
        title: item
        for title, item in named.items()
        if len(title) >= LEAST_TITLE_CHARACTERS and title not in twice
    }

"""Held-out reviews that a written row quotes.

Owns which reviews are distinctive and how a quotation is found. Knows no task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from genrec.data.dataset import Dataset
from genrec.data.log import REVIEW_COLUMNS
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import clean_text

LENGTHS = (60, 30)
"""Characters that a quotation begins with: of a long review, and of a shorter one."""

_WORD = re.compile(r"(?<!\w)\w")


class HeldReviews:
    """The beginnings of reviews that are held out, lower case."""

    def __init__(
        self, recipe: PromptsRecipe, dataset: Dataset, allowed: Sequence[str] = ("train",)
    ) -> None:
        """Read the reviews; a beginning that stands in a training review too tells nothing."""
        lengths = sorted({min(n, recipe.max_review_characters) for n in LENGTHS}, reverse=True)
        self._lengths = [n for n in lengths if n >= min(LENGTHS)]
        self._held: set[str] = set()
        if not dataset.has_reviews or not self._lengths:
            return
        reviews = dataset.reviews()
        free = dataset.interactions["split"].is_in(list(allowed))
        for text in reviews["review_text"].filter(~free):
            self._held.update(self._begin(text)[:1])
        said = reviews.filter(free)
        for text in [text for column in REVIEW_COLUMNS for text in said[column] if text]:
            self._held.difference_update(
                list(self._list_quotes(clean_text(text, len(text)).lower()))
            )

    @property
    def n_looked_for(self) -> int:
        """How many beginnings are looked for."""
        return len(self._held)

    def _begin(self, text: str | None) -> list[str]:
        """The beginnings of a review, the longest first."""
        # Four characters of the source for one that is left leave room for white space.
        first = clean_text((text or "")[: 4 * LENGTHS[0]], LENGTHS[0]).lower()
        words = _WORD.search(first)
        begun = first[words.start() :] if words else ""
        return [begun[:n] for n in self._lengths if len(begun) >= n]

    def find_quotes(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Row numbers, and the beginning of the review that each quotes."""
        if not self._held:
            return
        for slot in ("prompt", "target"):
            spans = pl.Series(table[f"{slot}_spans"])
            marked = np.flatnonzero(spans.list.len().to_numpy() > 0)
            texts = pl.Series(table[slot]).gather(marked).to_list()
            for row, text, ranges in zip(
                marked.tolist(), texts, spans.gather(marked).to_list(), strict=True
            ):
                for start, end in ranges:
                    quote = self._find_quote(text[start:end].lower())
                    if quote is not None:
                        yield row, repr(quote)

    def _find_quote(self, text: str) -> str | None:
        return next(self._list_quotes(text), None)

    def _list_quotes(self, text: str) -> Iterator[str]:
        """The held beginnings that a text, in lower case, has anywhere."""
        if len(text) < self._lengths[-1]:
            return
        for match in _WORD.finditer(text):
            for length in self._lengths:
                start = text[match.start() : match.start() + length]
                if start in self._held:
                    yield start

"""The items that a model can answer with, as people name them.

Owns the way between item ids and item_index, what is known of each item, and which items a filter
leaves. Knows no model, no prompt and no search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrec.decode.engine import ItemFilter
from genrec.errors import DataError, RecipeError, UnknownItemError, join_problems
from genrec.recipe import suggest_name
from genrec.types import Filters, IndexArray, Recommendation, Unknown

_MOST_NAMED = 5
_SUGGEST_AMONG = 20_000


class Catalogue:
    """Items in item_index order. It never changes: an update makes another one."""

    def __init__(self, index: pl.DataFrame) -> None:
        """Take the columns of an item index.

        Args:
            index: item_id, title, sid and, where they are known, categories; row order is
                item_index.
        """
        self.index = index
        self.item_ids: tuple[str, ...] = tuple(index["item_id"].to_list())
        self.titles: list[str] = index["title"].fill_null("").to_list()
        self.sids: list[str] = index["sid"].to_list()
        self.rows = {item_id: row for row, item_id in enumerate(self.item_ids)}

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return len(self.item_ids)

    @cached_property
    def category_masks(self) -> dict[str, NDArray[np.bool_]]:
        """The mask of each category, by its name in lower case; a path's every step is one."""
        if "categories" not in self.index.columns:
            return {}
        path = pl.col("categories").fill_null("").str.to_lowercase()
        # Amazon's paths go down by " > "; MovieLens lists genres.
        names = pl.when(path.str.contains(" > ", literal=True)).then(path.str.split(" > "))
        frame = self.index.select(
            pl.int_range(pl.len()).alias("row"), names.otherwise(path.str.split(", ")).alias("name")
        ).explode("name")
        masks = {}
        for (name,), rows in frame.group_by("name"):
            if name:
                mask = np.zeros(self.n_items, dtype=np.bool_)
                mask[rows["row"].to_numpy()] = True
                masks[str(name).strip()] = mask
        return masks

    def find_rows(self, item_ids: Sequence[str], unknown: Unknown) -> IndexArray:
        """The item_index of each item of a history.

        Args:
            item_ids: at least one.
            unknown: what to do with ids outside the catalogue: `error`, or `skip` them.

        Raises:
            UnknownItemError: an id outside the catalogue, and `unknown` is `error`.
            DataError: no item, or none that is known.
        """
        if isinstance(item_ids, str):
            raise DataError(
                f"a history is a list of item ids, not one string ({item_ids!r}); "
                f"write [{item_ids!r}]"
            )
        if unknown == "error":
            self._check_known(
                item_ids, "Correct the id, or pass unknown='skip' (--unknown skip) to leave it out"
            )
        known = [self.rows[item_id] for item_id in item_ids if item_id in self.rows]
        if not known:
            why = (
                f"none of its {len(item_ids)} ids is in the catalogue"
                if item_ids
                else "it is empty"
            )
            raise DataError(
                f"a history needs at least one known item, but {why}; "
                f"for users without history use a popularity list"
            )
        return np.array(known, dtype=np.int64)

    def find_titles(self, item_ids: Sequence[str]) -> list[str]:
        """The titles of items; empty for an id outside the catalogue."""
        rows = (self.rows.get(item_id) for item_id in item_ids)
        return ["" if row is None else self.titles[row] for row in rows]

    def find_mask(self, filters: Filters) -> NDArray[np.bool_] | None:
        """The items that `allow` and `categories` leave; None where they say nothing.

        Filters of one category alone share one array, which engines work through once.

        Raises:
            UnknownItemError: an allowed id outside the catalogue.
            DataError: a category that no item has.
        """
        masks = []
        if filters.categories:
            masks.append(self._find_categories(filters.categories))
        if filters.allow is not None:
            self._check_known(filters.allow, "Correct the id, or leave it out of `allow`")
            mask = np.zeros(self.n_items, dtype=np.bool_)
            mask[[self.rows[item_id] for item_id in filters.allow]] = True
            masks.append(mask)
        if filters.mask is not None:
            masks.append(filters.mask)
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)

    def build_filters(
        self, filters: Filters, seen: Sequence[IndexArray], *, available: NDArray[np.bool_] | None
    ) -> list[ItemFilter]:
        """The filter of each user of a request.

        Args:
            filters: the same for all of them.
            seen: for each user the item_index that it is not answered with.
            available: the items that can be had at all; None for all.

        Raises:
            UnknownItemError: an id outside the catalogue.
            DataError: a category that no item has.
        """
        mask = self.find_mask(filters)
        if available is not None:
            mask = available if mask is None else mask & available
        self._check_known(filters.deny, "Correct the id, or leave it out of `deny`")
        denied = np.array([self.rows[item_id] for item_id in filters.deny], dtype=np.int64)
        return [ItemFilter(np.union1d(items, denied), mask) for items in seen]

    def describe(self, item: int, rank: int, score: float) -> Recommendation:
        """An answer as people read it."""
        return Recommendation(
            item_id=self.item_ids[item],
            rank=rank,
            score=score,
            title=self.titles[item],
            sid=self.sids[item],
        )

    def _find_categories(self, names: Sequence[str]) -> NDArray[np.bool_]:
        known = self.category_masks
        if not known:
            raise DataError(
                "this model's item index has no categories, so nothing can be filtered by them; "
                "name items with `allow`, or train on data whose items have categories"
            )
        wanted = [name.strip().lower() for name in names]
        problems = [
            f"category {name!r}: {suggest_name(name, known)}"
            for name in wanted
            if name not in known
        ]
        if problems:
            raise DataError(join_problems("no item has these categories", problems))
        masks = [known[name] for name in wanted]
        return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)

    def _check_known(self, item_ids: Iterable[str], way_out: str) -> None:
        missing = [item_id for item_id in item_ids if item_id not in self.rows]
        if not missing:
            return
        named = ", ".join(repr(item_id) for item_id in missing[:_MOST_NAMED])
        hint = suggest_name(str(missing[0]), self.item_ids[:_SUGGEST_AMONG])
        hint = f"; {hint}" if hint.startswith("did") else "."
        more = len(missing) - _MOST_NAMED
        raise UnknownItemError(
            f"the catalogue of {self.n_items:,} items has no item {named}"
            f"{f' and {more} more' if more > 0 else ''}{hint} {way_out}"
        )


def check_unknown(unknown: str) -> None:
    """Refuse a policy for unknown ids that is none.

    Raises:
        RecipeError: neither `error` nor `skip`.
    """
    if unknown not in ("error", "skip"):
        raise RecipeError(f"unknown={unknown!r} is not a policy; use 'error' or 'skip'")

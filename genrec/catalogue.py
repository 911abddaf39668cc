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
from genrec.decode.trie import Trie
from genrec.errors import (
    CapacityError,
    DataError,
    RecipeError,
    UnknownItemError,
    join_problems,
)
from genrec.recipe import suggest_name
from genrec.types import Filters, IndexArray, Recommendation, Unknown

Mask = NDArray[np.bool_]

_MOST_NAMED = 5
_MOST_JOINED = 64
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
        self._joined: dict[tuple[int, int], tuple[Mask, Mask, Mask]] = {}

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return len(self.item_ids)

    @cached_property
    def lowered(self) -> pl.DataFrame:
        """Row, title and item_id of every item in lower case, for a search box."""
        return self.index.select(
            pl.int_range(pl.len()).alias("row"),
            pl.col("title").fill_null("").str.to_lowercase().alias("title"),
            pl.col("item_id").str.to_lowercase().alias("item_id"),
        )

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
                mask.setflags(write=False)  # so that engines work it through once
                masks[str(name).strip()] = mask
        return masks

    def check_histories(self, histories: Sequence[IndexArray], k: int) -> None:
        """Refuse histories of item_index, or a number of answers, that the catalogue cannot serve.

        Raises:
            CapacityError: k is below 1 or above the number of items.
            DataError: an empty history.
            UnknownItemError: an index outside the catalogue.
        """
        if not 1 <= k <= self.n_items:
            raise CapacityError(
                f"k={k} answers were asked for, but the catalogue has {self.n_items:,} items; "
                f"choose k from 1 to {self.n_items}"
            )
        for history in histories:
            if len(history) == 0:
                raise DataError("a history is empty; it needs at least one item")
            if history.min() < 0 or history.max() >= self.n_items:
                raise UnknownItemError(
                    f"a history holds item_index {int(history.max())} or {int(history.min())}, "
                    f"outside 0..{self.n_items - 1}; indices must come from this model's catalogue"
                )

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
        """The items that `mask` and `categories` leave; None where they say nothing.

        Filters of one category alone share one array, which engines work through once.

        Raises:
            DataError: a category that no item has.
        """
        masks = []
        if filters.categories:
            masks.append(self._find_categories(filters.categories))
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
            mask = available if mask is None else self._join_masks(mask, available)
        only = None
        if filters.allow is not None:
            self._check_known(filters.allow, "Correct the id, or leave it out of `allow`")
            only = np.array([self.rows[item_id] for item_id in filters.allow], dtype=np.int64)
        self._check_known(filters.deny, "Correct the id, or leave it out of `deny`")
        denied = np.array([self.rows[item_id] for item_id in filters.deny], dtype=np.int64)
        return [ItemFilter(np.union1d(items, denied), mask, only) for items in seen]

    def _join_masks(self, mask: Mask, available: Mask) -> Mask:
        """Both conditions; a category's is joined once with what can be had, and kept."""
        if mask.flags.writeable or available.flags.writeable:
            return mask & available
        key = id(mask), id(available)
        known = self._joined.get(key)
        # The masks are kept beside their join: as long as they live, no other has their id.
        if known is None:
            joined = mask & available
            joined.setflags(write=False)
            known = self._joined[key] = (mask, available, joined)
            if len(self._joined) > _MOST_JOINED:
                self._joined.pop(next(iter(self._joined)))
        return known[2]

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


def frame_items(
    item_ids: Sequence[str],
    titles: Sequence[str],
    sids: Sequence[str],
    categories: Sequence[str],
) -> pl.DataFrame:
    """The rows of an item index for these items."""
    columns = {"item_id": item_ids, "title": titles, "sid": sids, "categories": categories}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def change_items(
    trie: Trie,
    index: pl.DataFrame,
    removed: Sequence[int],
    new: pl.DataFrame,
    codes: NDArray[np.integer],
) -> tuple[Trie, pl.DataFrame]:
    """The trie and the index of a catalogue of which some items went and others came.

    Items that stay keep their order, new ones follow.

    Args:
        trie: of the items before; unchanged.
        index: theirs; unchanged.
        removed: item_index of those that go.
        new: item_id, title, sid and categories of those that come; their codes may be those of
            items that go.
        codes: (M, L), row i for row i of `new`.

    Raises:
        DataError: no item would be left, or codes that an item has which stays.
    """
    if len(removed) == trie.n_items and len(new):
        changed = Trie.from_codes(codes)  # a trie is never empty, not even on the way
    else:
        changed = trie.remove(removed) if len(removed) else trie
        changed = changed.insert(codes) if len(new) else changed
    columns = [name for name in new.columns if name in index.columns]
    stays = np.ones(len(index), dtype=np.bool_)
    stays[np.asarray(removed, dtype=np.int64)] = False
    kept = index.select(columns).filter(pl.Series(stays))
    return changed, pl.concat([kept, new.select(columns)])

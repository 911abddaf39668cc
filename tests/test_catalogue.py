"""Filters as people say them become masks and item_index; masks that are alike are one array."""

from __future__ import annotations

import gc

import numpy as np
import polars as pl
import pytest

from genrec.catalogue import Catalogue
from genrec.errors import DataError, UnknownItemError
from genrec.types import Filters

CATEGORIES = ["Home > Lamps", "Home > Chairs", "Garden", None, "Drama, Crime", "home > lamps"]
NOTHING = np.empty(0, dtype=np.int64)


def make_catalogue(categories: list[str | None] | None = CATEGORIES) -> Catalogue:
    ids = [f"i{row}" for row in range(len(CATEGORIES))]
    columns = {"item_id": ids, "title": ids, "sid": [f"<a_{row}>" for row in range(len(ids))]}
    return Catalogue(pl.DataFrame(columns | ({"categories": categories} if categories else {})))


def freeze(values: list[bool]) -> np.ndarray:
    mask = np.array(values)
    mask.setflags(write=False)
    return mask


def list_rows(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return np.flatnonzero(mask).tolist()


def test_categories_are_the_steps_of_a_path_or_a_list_of_genres() -> None:
    masks = make_catalogue().category_masks
    assert {name: list_rows(mask) for name, mask in masks.items()} == {
        "home": [0, 1, 5],
        "lamps": [0, 5],
        "chairs": [1],
        "garden": [2],
        "drama": [4],
        "crime": [4],
    }
    assert not any(mask.flags.writeable for mask in masks.values())
    assert make_catalogue(None).category_masks == {}


def test_every_condition_must_hold_and_one_of_the_categories() -> None:
    catalogue, own = make_catalogue(), np.array([False, True, True, True, True, False])
    find = catalogue.find_mask
    assert find(Filters()) is None
    assert find(Filters(mask=own)) is own
    assert find(Filters(categories=[" LAMPS "])) is catalogue.category_masks["lamps"]
    assert list_rows(find(Filters(categories=["garden", "lamps"]))) == [0, 2, 5]
    assert list_rows(find(Filters(categories=["garden", "lamps"], mask=own))) == [2]


def test_a_category_is_joined_once_with_what_can_be_had() -> None:
    catalogue, available = make_catalogue(), freeze([False, True, True, True, True, True])
    lamps = Filters(categories=["lamps"])

    def join(filters: Filters, available: np.ndarray) -> np.ndarray | None:
        wanted = catalogue.build_filters(filters, [NOTHING, NOTHING], available=available)
        assert wanted[0].allowed is wanted[1].allowed
        return wanted[0].allowed

    first = join(lamps, available)
    assert list_rows(first) == [5] and not first.flags.writeable
    assert join(lamps, available) is first
    assert join(Filters(), available) is available
    other = join(lamps, freeze([True] * 5 + [False]))
    assert list_rows(other) == [0]
    assert join(lamps, available) is first
    # What may still change is joined anew, and as it is now.
    changing = np.ones(6, dtype=np.bool_)
    assert list_rows(join(lamps, changing)) == [0, 5]
    changing[0] = False
    assert list_rows(join(lamps, changing)) == [5]
    assert list_rows(join(Filters(mask=~changing, categories=["lamps"]), available)) == []


def test_joins_are_bounded_and_never_those_of_a_mask_that_is_gone() -> None:
    catalogue, lamps = make_catalogue(), Filters(categories=["lamps"])
    for number in range(200):
        kept = [bool(number >> row & 1) for row in range(6)]
        wanted = catalogue.build_filters(lamps, [NOTHING], available=freeze(kept))
        assert list_rows(wanted[0].allowed) == [row for row in (0, 5) if kept[row]]
        gc.collect(0)
    assert len(catalogue._joined) <= 64


def test_named_items_become_rows_and_unknown_ones_are_refused() -> None:
    catalogue = make_catalogue()
    seen = [np.array([3]), NOTHING]
    wanted = catalogue.build_filters(
        Filters(allow=["i4", "i2"], deny=["i0", "i3"]), seen, available=None
    )
    assert [each.excluded.tolist() for each in wanted] == [[0, 3], [0, 3]]
    assert [each.only.tolist() for each in wanted] == [[4, 2], [4, 2]]
    assert [each.allowed for each in wanted] == [None, None]
    (empty,) = catalogue.build_filters(Filters(allow=[]), [NOTHING], available=None)
    assert empty.only.tolist() == []
    for name in ("allow", "deny"):
        with pytest.raises(UnknownItemError, match=f"no item 'i9'.* leave it out of `{name}`"):
            catalogue.build_filters(Filters(**{name: ["i9"]}), [NOTHING], available=None)
    with pytest.raises(DataError, match=r"category 'lamp': did you mean 'lamps'"):
        catalogue.find_mask(Filters(categories=["Lamp"]))
    with pytest.raises(DataError, match="this model's item index has no categories"):
        make_catalogue(None).find_mask(Filters(categories=["lamps"]))

"""The sources `amazon2014`, `amazon2018` and `amazon2023`: reviews and product metadata.

Owns each year's field names and quirks. Source: McAuley lab, jmcauley.ucsd.edu/data/amazon (2014),
nijianmo.github.io/amazon (2018), amazon-reviews-2023.github.io.
"""

from __future__ import annotations

from collections.abc import Mapping

from genrec.data.layout import Column, Columns, Layout, Unit
from genrec.data.recipe import DataRecipe
from genrec.data.table import describe_file, find_pair
from genrec.data.text import flatten_path, flatten_text

_REVIEWS: Columns = {
    "user_id": Column(("reviewerID",), required=True),
    "item_id": Column(("asin",), required=True),
    "timestamp": Column(("unixReviewTime",), required=True),
    "rating": Column(("overall",)),
    "review_text": Column(("reviewText",)),
    "review_title": Column(("summary",)),
}
_REVIEWS_2023: Columns = {
    "user_id": Column(("user_id",), required=True),
    # `asin` is one colour or size; `parent_asin` is what the metadata describes
    "item_id": Column(("parent_asin",), required=True),
    "timestamp": Column(("timestamp",), required=True),
    "rating": Column(("rating",)),
    "review_text": Column(("text",)),
    "review_title": Column(("title",)),
}


def _join_sentences(*values: object) -> str:
    return " ".join(text for value in values if (text := flatten_text(value, " ")))


def _clean_title(value: object) -> str:
    """A title; of 2018, pages that were scraped as JavaScript have none (the authors' own rule)."""
    title = flatten_text(value)
    return "" if "getTime" in title else title


def _find_categories(path: object, main: object) -> str:
    return flatten_path(path) or flatten_text(main)


def _find_brand(store: object, details: object) -> str:
    if store:
        return flatten_text(store)
    return flatten_text(details.get("Brand")) if isinstance(details, Mapping) else ""


_ITEMS_2014: Columns = {
    "item_id": Column(("asin",), required=True),
    "title": Column(("title",)),
    "brand": Column(("brand",)),
    "categories": Column(("categories",), flatten_path),
    "description": Column(("description",), _join_sentences),
    "price": Column(("price",)),
}
_ITEMS_2018: Columns = {
    **_ITEMS_2014,
    "title": Column(("title",), _clean_title),
    "categories": Column(("category",), flatten_path),
}
_ITEMS_2023: Columns = {
    "item_id": Column(("parent_asin",), required=True),
    "title": Column(("title",)),
    "brand": Column(("store", "details"), _find_brand),
    "categories": Column(("categories", "main_category"), _find_categories),
    "description": Column(("features", "description"), _join_sentences),
    "price": Column(("price",)),
}


def _is_metadata(stem: str) -> bool:
    return stem.lower().startswith("meta")


def find_2014(recipe: DataRecipe) -> Layout:
    """The layout of the 2014 files; metadata lines may be Python literals."""
    return _find(recipe, _REVIEWS, _ITEMS_2014)


def find_2018(recipe: DataRecipe) -> Layout:
    """The layout of the 2018 files."""
    return _find(recipe, _REVIEWS, _ITEMS_2018)


def find_2023(recipe: DataRecipe) -> Layout:
    """The layout of the 2023 files, times in milliseconds."""
    return _find(recipe, _REVIEWS_2023, _ITEMS_2023, "milliseconds")


def _find(recipe: DataRecipe, reviews: Columns, items: Columns, unit: Unit = "seconds") -> Layout:
    literals = recipe.source == "amazon2014"
    reviews_path, items_path = find_pair(recipe, lambda stem: not _is_metadata(stem), _is_metadata)
    metadata = describe_file(items_path, recipe, literals=literals) if items_path else None
    return Layout(
        interactions=describe_file(reviews_path, recipe, header=recipe.header, literals=literals),
        interaction_columns=reviews,
        items=metadata,
        item_columns=items,
        timestamp_unit=unit,
    )

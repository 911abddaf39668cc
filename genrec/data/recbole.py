"""The source `recbole`: atomic files, `.inter` and `.item`, with `name:type` headers.

Owns their naming. Source: recbole.io/atomic_files.html.
"""

from __future__ import annotations

from pathlib import Path

from genrec.data.layout import Column, Columns, Layout, TableFile
from genrec.data.recipe import DataRecipe
from genrec.errors import DataError
from genrec.recipe import expand_path

INTERACTIONS: Columns = {
    "user_id": Column(("user_id",), required=True),
    "item_id": Column(("item_id",), required=True),
    "timestamp": Column(("timestamp",)),
    "rating": Column(("rating",)),
    "review_text": Column(("review_text", "review")),
    "review_title": Column(("review_title", "summary")),
}
ITEMS: Columns = {
    "item_id": Column(("item_id",), required=True),
    "title": Column(("title", "movie_title", "name", "item_name")),
    "brand": Column(("brand", "store")),
    "categories": Column(("categories", "category", "class", "genre", "genres")),
    "description": Column(("description",)),
    "price": Column(("price",)),
}


def find_layout(recipe: DataRecipe) -> Layout:
    """The layout of a RecBole dataset: a folder, or the prefix of its files.

    Raises:
        DataError: no `.inter` file, or several.
    """
    interactions = _find_file(recipe, recipe.interactions, ".inter")
    if interactions is None:
        raise DataError(
            f"source recbole has no .inter file at {recipe.path or '(path not set)'}; "
            f"set `path` to the dataset's folder, or `interactions` to the file"
        )
    items = _find_file(recipe, recipe.items, ".item")
    return Layout(
        interactions=_describe(interactions, recipe),
        interaction_columns=INTERACTIONS,
        items=_describe(items, recipe) if items is not None else None,
        item_columns=ITEMS,
    )


def _find_file(recipe: DataRecipe, named: str | None, ending: str) -> Path | None:
    if named is not None:
        return expand_path(named)
    if recipe.path is None:
        return None
    path = expand_path(recipe.path)
    if not path.is_dir():
        file = path.with_name(path.name + ending)
        return file if file.is_file() else None
    found = sorted(path.glob(f"*{ending}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{path} holds several {ending} files: {names}; name one in the recipe")
    return found[0] if found else None


def _describe(path: Path, recipe: DataRecipe) -> TableFile:
    separator = recipe.separator or "\t"
    return TableFile(path, "plain", separator, encoding=recipe.encoding, typed_header=True)

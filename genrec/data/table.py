"""The source `table`: a user's own CSV, TSV, JSONL or Parquet files.

Owns the finding of files in a folder and the reading of a file's ending. Knows no column names but
ours; a recipe's `columns` and `item_columns` give the file's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genrec.data.layout import Column, Columns, Format, Layout, TableFile
from genrec.data.recipe import INTERACTION_COLUMNS, ITEM_COLUMNS, DataRecipe
from genrec.errors import DataError
from genrec.recipe import expand_path

StemTest = Callable[[str], bool]
_ENDINGS: dict[str, tuple[Format, str]] = {
    ".parquet": ("parquet", ""),
    ".jsonl": ("jsonl", ""),
    ".json": ("jsonl", ""),
    ".ndjson": ("jsonl", ""),
    ".csv": ("csv", ","),
    ".tsv": ("csv", "\t"),
}
INTERACTIONS: Columns = {
    name: Column((name,), required=name in {"user_id", "item_id"}) for name in INTERACTION_COLUMNS
}
ITEMS: Columns = {name: Column((name,), required=name == "item_id") for name in ITEM_COLUMNS}


def find_layout(recipe: DataRecipe) -> Layout:
    """The layout of a user's own pair of files.

    Raises:
        DataError: no interactions file is named or found, or an ending says nothing.
    """
    interactions, items = find_pair(recipe, "interactions".__eq__, "items".__eq__)
    return Layout(
        interactions=describe_file(interactions, recipe, header=recipe.header),
        interaction_columns=INTERACTIONS,
        items=describe_file(items, recipe, header=recipe.item_header) if items else None,
        item_columns=ITEMS,
        timestamp_unit=recipe.timestamp_unit,
    )


def find_pair(
    recipe: DataRecipe, is_interactions: StemTest, is_items: StemTest
) -> tuple[Path, Path | None]:
    """The two files: those the recipe names, else those in its folder whose names fit.

    Args:
        recipe: names the files, or the folder.
        is_interactions: whether a file of this name (without its ending) holds the interactions.
        is_items: whether it describes the items.

    Raises:
        DataError: there is no interactions file, or several files fit.
    """
    folder = expand_path(recipe.path) if recipe.path is not None else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"path {folder} is no folder; name one, or the files in `interactions`")
    found: list[Path | None] = []
    for role, named, fits in (
        ("interactions", recipe.interactions, is_interactions),
        ("items", recipe.items, is_items),
    ):
        if named is not None:
            found.append(expand_path(named))
        else:
            found.append(_find_file(folder, role, fits) if folder is not None else None)
    if found[0] is None:
        where = f"{folder} holds none" if folder is not None else "the recipe names none"
        raise DataError(
            f"source {recipe.source} has no interactions file: {where}; set `interactions` to the "
            f"file, or `path` to its folder (endings: {', '.join(_ENDINGS)})"
        )
    return found[0], found[1]


def _find_file(folder: Path, role: str, fits: StemTest) -> Path | None:
    found = []
    for file in sorted(folder.iterdir()):
        name = Path(file.name.removesuffix(".gz"))
        if name.suffix.lower() in _ENDINGS and fits(name.stem):
            found.append(file)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"{folder} holds several files that could be the {role}: {names}; "
            f"name one in the recipe's `{role}`"
        )
    return found[0] if found else None


def describe_file(
    path: Path,
    recipe: DataRecipe,
    *,
    header: tuple[str, ...] | None = None,
    literals: bool = False,
) -> TableFile:
    """How a file is written, by its ending and what the recipe says.

    Raises:
        DataError: the ending says nothing, and the recipe gives no separator.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in _ENDINGS and recipe.separator is None:
        raise DataError(
            f"{path}: the ending {ending!r} says nothing about the format; "
            f"known are {', '.join(_ENDINGS)} (text also with .gz), or set `separator`"
        )
    kind, separator = _ENDINGS.get(ending, ("csv", ","))
    if recipe.separator is not None and kind == "csv":
        separator = recipe.separator
        kind = "csv" if len(separator) == 1 else "plain"
    return TableFile(path, kind, separator, header, recipe.encoding, literals)

"""Which files a source has, how they are written, and which of their columns mean what.

Owns the description that sources give and readers follow. Reads no file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Format = Literal["jsonl", "csv", "plain", "parquet"]
Unit = Literal["seconds", "milliseconds", "microseconds", "iso"]


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of rows.

    `csv` has quoted fields, `plain` none (so that a separator may be longer than one character).
    `literals` tolerates lines that are Python literals rather than JSON, as Amazon's of 2014 are;
    `typed_header` means a header of `name:type`, as RecBole's atomic files have.
    """

    path: Path
    format: Format
    separator: str = ","
    header: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    literals: bool = False
    typed_header: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column of ours comes from.

    `names` are the file's; the first that is there is taken, or, with `combine`, all of them are
    passed to it, in order, None for those that are absent.
    """

    names: tuple[str, ...]
    combine: Callable[..., object] | None = None
    required: bool = False


Columns = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a source's files look like."""

    interactions: TableFile
    interaction_columns: Columns
    items: TableFile | None = None
    item_columns: Columns = field(default_factory=dict)
    timestamp_unit: Unit = "seconds"


def map_columns(columns: Columns, mapping: Mapping[str, str]) -> Columns:
    """The columns with a recipe's own names laid over them; what a recipe names is required."""
    own = {name: Column((source,), required=True) for name, source in mapping.items()}
    return {**columns, **own}


def map_layout(
    layout: Layout, columns: Mapping[str, str], item_columns: Mapping[str, str]
) -> Layout:
    """The layout with a recipe's `columns` and `item_columns` laid over it."""
    return replace(
        layout,
        interaction_columns=map_columns(layout.interaction_columns, columns),
        item_columns=map_columns(layout.item_columns, item_columns),
    )

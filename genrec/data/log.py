"""The interaction log in memory: ids as numbers, times as seconds, no text.

Owns reading a source's interactions into few bytes a row, and reading the review texts of the rows
that are left at the end. Knows no filter and no split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.data.faults import Faults
from genrec.data.layout import Layout
from genrec.data.rows import RowBlock, read_blocks, select_values
from genrec.data.typed import ValueCheck, read_ids, read_numbers, read_seconds, read_text
from genrec.types import IndexArray

REVIEW_COLUMNS = ("review_text", "review_title")
_UNIT_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class Log:
    """Who chose what.

    `rows` has line (i64), user and item (u32, places in the two id lists), and, where the source
    has them, timestamp (f64 seconds), rating (f64), position (f64) and review (u64, a hash of the
    texts).
    The id lists are in order of first appearance.
    """

    rows: pl.DataFrame
    user_ids: list[str]
    item_ids: list[str]


class _Codes:
    """Numbers for ids, in order of first appearance."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, ids: Sequence[str]) -> pl.Series:
        known = self.known
        return pl.Series([known.setdefault(i, len(known)) for i in ids], dtype=pl.UInt32)


def read_log(layout: Layout, faults: Faults) -> Log:
    """A source's interactions; faults of form and of value go to `faults`."""
    users, items = _Codes(), _Codes()
    columns = layout.interaction_columns
    frames = []
    for block in read_blocks(layout.interactions, columns, faults):
        check = ValueCheck(faults, block.lines)
        frame: dict[str, pl.Series] = {"line": pl.Series(block.lines, dtype=pl.Int64)}
        for name, codes in (("user", users), ("item", items)):
            values = select_values(block, columns[f"{name}_id"])
            assert values is not None, "read_blocks refuses files without required columns"
            frame[name] = codes.encode(read_ids(values, f"{name}_id", check))
        frames.append(pl.DataFrame(frame | _read_rest(block, layout, check)))
    if not frames:
        if not faults:
            faults.add_file("holds no rows")
        return Log(pl.DataFrame(), [], [])
    # JSON lines may begin to have a column late; what then lacks it is null, and checked here.
    rows = pl.concat(frames, how="diagonal")
    for name in ("timestamp", "position"):
        n_without = rows[name].null_count() if name in rows.columns else 0
        if n_without and not faults:
            faults.add_file(f"has no {name} in {n_without:,} of its {rows.height:,} rows")
    return Log(rows, list(users.known), list(items.known))


def _read_rest(block: RowBlock, layout: Layout, check: ValueCheck) -> dict[str, pl.Series]:
    found = {}
    for name, column in layout.interaction_columns.items():
        values = select_values(block, column)
        if values is None:
            continue
        if name == "timestamp":
            found[name] = read_seconds(values, layout.timestamp_unit, check)
        elif name == "rating":
            found[name] = read_numbers(values, name, check)
        elif name == "position":
            found[name] = read_numbers(values, name, check)
            check.reject(found[name].is_null(), "position is missing", values)
    texts = _read_reviews(block, layout)
    if texts:
        joined = pl.DataFrame(texts).select(
            pl.concat_str(pl.all().fill_null(""), separator=_UNIT_SEPARATOR)
        )
        found["review"] = joined.to_series().hash()
    return found


def _read_reviews(block: RowBlock, layout: Layout) -> dict[str, pl.Series]:
    found = {}
    for name in REVIEW_COLUMNS:
        column = layout.interaction_columns.get(name)
        values = select_values(block, column) if column is not None else None
        if values is not None:
            found[name] = read_text(values)
    return found


def read_reviews(layout: Layout, lines: IndexArray) -> Iterator[pl.DataFrame]:
    """The review texts of some lines, read from the file a second time, in blocks.

    Holding them from the first reading on would cost more memory than all else together.

    Args:
        layout: the source.
        lines: the line numbers wanted, rising.
    """
    faults = Faults(layout.interactions.path)  # found clean by the first reading
    columns = {n: c for n, c in layout.interaction_columns.items() if n in REVIEW_COLUMNS}
    for block in read_blocks(layout.interactions, columns, faults):
        numbers = np.asarray(block.lines, dtype=np.int64)
        places = np.searchsorted(lines, numbers).clip(max=len(lines) - 1)
        wanted = pl.Series(lines[places] == numbers)
        texts = _read_reviews(block, layout)
        absent = pl.Series([None] * len(numbers), dtype=pl.String)
        found = {name: texts.get(name, absent) for name in REVIEW_COLUMNS}
        yield pl.DataFrame({"line": numbers, **found}).filter(wanted)

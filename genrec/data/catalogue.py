"""The catalogue: the items that a source describes.

Owns reading, cleaning and de-duplicating item descriptions. Knows no interaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import polars as pl

from genrec.data.faults import Faults
from genrec.data.layout import Layout
from genrec.data.recipe import ITEM_COLUMNS
from genrec.data.rows import RowBlock, read_blocks, select_values
from genrec.data.text import clean_text, flatten_text, parse_price, render_fields
from genrec.data.typed import ValueCheck, read_ids

_log = logging.getLogger(__name__)


def item_schema(extra: Sequence[str] = ()) -> dict[str, type[pl.DataType]]:
    """The columns of a catalogue, in order, with a source's own after ours."""
    kinds: dict[str, type[pl.DataType]] = {name: pl.String for name in [*ITEM_COLUMNS, *extra]}
    return kinds | {"price": pl.Float64}


def read_catalogue(
    layout: Layout, wanted: Collection[str] | None, faults: Faults | None
) -> pl.DataFrame:
    """The items that a source describes, in its order, each once (its first description).

    Args:
        layout: the source; one without an items file gives an empty catalogue.
        wanted: the items to keep, None for all.
        faults: where faults go; needed if there is an items file.
    """
    extra = [name for name in layout.item_columns if name not in ITEM_COLUMNS]
    schema = item_schema(extra)
    if layout.items is None:
        return pl.DataFrame(schema=schema)
    assert faults is not None, "an items file comes with its faults"
    frames = [pl.DataFrame(schema=schema)]
    seen: set[str] = set()
    n_again = n_rows = 0
    for block in read_blocks(layout.items, layout.item_columns, faults):
        values = select_values(block, layout.item_columns["item_id"])
        assert values is not None, "read_blocks refuses files without required columns"
        ids = read_ids(values, "item_id", ValueCheck(faults, block.lines))
        places = []
        for place, item_id in enumerate(ids):
            if item_id in seen:
                n_again += 1
            elif wanted is None or item_id in wanted:
                seen.add(item_id)
                places.append(place)
        frames.append(_read_items(block, layout, ids, places, schema))
        n_rows += len(ids)
    if not n_rows and not faults:
        faults.add_file("holds no rows")
    if n_again:
        _log.info("%s: %s repeated descriptions left out", layout.items.path.name, f"{n_again:,}")
    return pl.concat(frames)


def _read_items(
    block: RowBlock,
    layout: Layout,
    ids: Sequence[str],
    places: Sequence[int],
    schema: Mapping[str, type[pl.DataType]],
) -> pl.DataFrame:
    """Some rows of a block as a catalogue; only these are cleaned, for most may be unwanted."""
    kept = RowBlock(
        [block.lines[p] for p in places],
        {name: [values[p] for p in places] for name, values in block.columns.items()},
    )
    columns: dict[str, Sequence[object]] = {}
    for name, kind in schema.items():
        column = layout.item_columns.get(name)
        values = select_values(kept, column) if column is not None else None
        read: Callable[[object], object] = parse_price if kind is pl.Float64 else read_field
        columns[name] = [read(value) for value in values or [None] * len(places)]
    columns["item_id"] = [ids[p] for p in places]
    return pl.DataFrame(columns, schema=dict(schema))


def read_field(value: object) -> str:
    """A description field as clean text."""
    return clean_text(flatten_text(value))


def render_texts(
    items: pl.DataFrame, fields: Sequence[str], max_field_chars: int | None
) -> pl.Series:
    """The text of each item, made of the recipe's fields."""
    rows = items.select(fields).iter_rows(named=True)
    return pl.Series("text", [render_fields(row, fields, max_field_chars) for row in rows])

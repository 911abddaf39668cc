"""A wording filled in for many rows at once, as Arrow columns.

Owns the texts and the spans of text from data, by column: a list of strings for each field in, an
Arrow array of strings and one of character ranges out. Equal to `CompiledText.render` row by row,
which a test holds it to. Knows no task and no corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.prompts.sandbox import CleanText, CompiledText, SidText

SPANS = pa.list_(pa.list_(pa.int32()))


@dataclass(frozen=True, slots=True)
class TextColumn:
    """R texts, and for each the character ranges [start, end) that came from data."""

    texts: pa.Array
    spans: pa.Array


def render_column(
    compiled: CompiledText, values: Mapping[str, Sequence[str]], n_rows: int
) -> TextColumn:
    """The text of every row.

    Args:
        compiled: the wording.
        values: for each of its fields R values.
        n_rows: R, which a wording without fields cannot tell.

    Raises:
        TemplateError: an expression fails for some row.
    """
    kinds = {name: set(map(type, values[name])) for name in compiled.names}
    plain = all(len(kind) == 1 and kind <= {SidText, CleanText} for kind in kinds.values())
    if compiled.parts is None or not plain:
        return _render_rows(compiled, values, n_rows)
    pieces: list[pa.Array | pa.Scalar] = []
    lengths: list[pa.Array | int] = []
    from_data: list[bool] = []
    arrays = {name: pa.array(values[name], pa.string()) for name in compiled.names}
    for is_field, text in compiled.parts:
        pieces.append(arrays[text] if is_field else pa.scalar(text, pa.string()))
        from_data.append(is_field and kinds[text] == {CleanText})
        lengths.append(arrays[text] if is_field else len(text))
    if not arrays:
        text = "".join(text for _, text in compiled.parts)
        return TextColumn(pa.array([text] * n_rows, pa.string()), _no_spans(n_rows))
    texts = pc.binary_join_element_wise(*pieces, "")
    spans = _find_spans(lengths, from_data, n_rows) if any(from_data) else _no_spans(n_rows)
    return TextColumn(texts, spans)


def _find_spans(
    pieces: Sequence[pa.Array | int], from_data: Sequence[bool], n_rows: int
) -> pa.Array:
    """Where the pieces from data stand in each row, empty ones left out."""
    end = np.zeros(n_rows, dtype=np.int32)
    starts, ends = [], []
    for piece, is_data in zip(pieces, from_data, strict=True):
        start = end
        length = piece if isinstance(piece, int) else pc.utf8_length(piece).to_numpy()
        end = start + length
        if is_data:
            starts.append(start)
            ends.append(end)
    ranges = np.stack([np.stack(starts, axis=1), np.stack(ends, axis=1)], axis=2)
    kept = ranges[:, :, 1] > ranges[:, :, 0]
    return _nest(ranges[kept].reshape(-1), kept.sum(axis=1))


def _nest(flat: np.ndarray, counts: np.ndarray) -> pa.Array:
    pairs = np.arange(0, len(flat) + 1, 2, dtype=np.int32)
    inner = pa.ListArray.from_arrays(pairs, pa.array(flat, pa.int32()), type=SPANS.value_type)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, inner, type=SPANS)


def _no_spans(n_rows: int) -> pa.Array:
    return _nest(np.zeros(0, dtype=np.int32), np.zeros(n_rows, dtype=np.int32))


def _render_rows(
    compiled: CompiledText, values: Mapping[str, Sequence[str]], n_rows: int
) -> TextColumn:
    """The same row by row, where a wording has conditions or values are of several kinds."""
    names = sorted(compiled.names)
    rows = zip(*(values[name] for name in names), strict=True) if names else [()] * n_rows
    rendered = [compiled.render(dict(zip(names, row, strict=True))) for row in rows]
    return TextColumn(
        pa.array([row.text for row in rendered], pa.string()),
        pa.array([row.spans for row in rendered], SPANS),
    )

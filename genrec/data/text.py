"""Item text: what a catalogue says about an item, made fit to read.

Owns cleaning (entities, white space, control characters) and the rendering of fields into one line.
Knows no file format. The words themselves stay as they are: markup-like text is data, and later
steps keep it inert.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

import polars as pl

# Control characters, and the invisible ones that reorder or hide text; joiners stay, since scripts
# and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_NUMBER = re.compile(r"^[$€£]?\s*(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?$")
# What cleaning may change, and more: whatever does not match is clean.
_UNCLEAN = r"&|\s\s|[\s--\x20]|^\s|\s$|[\p{Cc}\p{Cf}\p{Cn}]"
_UNESCAPE_ROUNDS = 2  # Amazon's dumps escape some entities twice: `eForCity&amp;reg;`


def clean_text(text: str) -> str:
    """The text with entities resolved, white space collapsed and control characters removed."""
    for _ in range(_UNESCAPE_ROUNDS):
        if "&" not in text:
            break
        text = html.unescape(text)
    return " ".join(_HIDDEN.sub("", text).split())


def clean_series(series: pl.Series) -> pl.Series:
    """A column of clean text; only the values that need it leave polars."""
    places = series.str.contains(_UNCLEAN).fill_null(False).arg_true()
    return series.scatter(places, [clean_text(text) for text in series[places]])


def flatten_text(value: object, separator: str = ", ") -> str:
    """Plain text of a value as JSON or Parquet may hold it: text, number, list or mapping."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {flatten_text(part)}" for name, part in value.items())
    if isinstance(value, Sequence):
        return separator.join(text for part in value if (text := flatten_text(part, separator)))
    return str(value)


def flatten_path(value: object) -> str:
    """The longest category path as `Beauty > Makeup > Nails`; of equally long ones the first."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = [
            part for part in value if isinstance(part, Sequence) and not isinstance(part, str)
        ]
        return flatten_text(max(nested, key=len) if nested else value, " > ")
    return flatten_text(value)


def parse_price(value: object) -> float | None:
    """The price as a number; None where the text is no single amount (`$5 - $9`, `from 3`)."""
    if value is None or isinstance(value, bool):
        return None
    match = _NUMBER.match(flatten_text(value).strip())
    if match is None:
        return None
    return float(match.group(1).replace(",", "") + (match.group(2) or ""))


def render_fields(
    values: Mapping[str, object], fields: Sequence[str], max_field_chars: int | None = None
) -> str:
    """One line such as `title: Red Shatter; brand: OPI`; empty fields are left out.

    Args:
        values: an item's columns, already clean.
        fields: which of them, in order.
        max_field_chars: longer fields end at the last whole word before it.
    """
    parts = []
    for name in fields:
        value = values.get(name)
        text = f"{value:g}" if isinstance(value, float) else flatten_text(value)
        if max_field_chars is not None and len(text) > max_field_chars:
            text = text[:max_field_chars].rsplit(" ", 1)[0]
        if text:
            parts.append(f"{name}: {text}")
    return "; ".join(parts)

"""Values as files hold them, turned into ids, numbers and times.

Owns the rules a value must meet and the wording of its faults. Knows neither formats nor sources.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from genrec.data.faults import Faults
from genrec.data.layout import Unit
from genrec.data.recipe import parse_moment

_PER_SECOND = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6}
_LATEST_SECONDS = 32_503_680_000.0  # the year 3000: what lies beyond is milliseconds, misread
_PLAIN = {str, int, float, type(None)}
_UNIT_HINT = (
    "in {unit} since 1970, before the year 3000 (set timestamp_unit if they are written otherwise)"
)


@dataclass(frozen=True, slots=True)
class ValueCheck:
    """What the values of a block are checked against, and where faults go."""

    faults: Faults
    lines: Sequence[int]

    def reject(self, bad: pl.Series, rule: str, values: Sequence[object]) -> None:
        """Record each row where `bad` is true, with its value."""
        places = bad.arg_true().to_list()
        if places:
            self.faults.add_lines(
                rule, [self.lines[p] for p in places], [values[p] for p in places]
            )


def read_ids(values: Sequence[object], name: str, check: ValueCheck) -> list[str]:
    """Ids as text, white space around them removed; whole floats lose their `.0`.

    Faults are recorded for ids that are missing, no plain value, or hold control characters.
    """
    check.reject(_is_odd(values), f"{name} must be text or a number", values)
    if float in set(map(type, values)):
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    ids = _text_series(values).str.strip_chars()
    check.reject(ids.is_null() | (ids == ""), f"{name} is missing", values)
    hidden = ids.str.contains(r"\p{Cc}").fill_null(False)
    check.reject(hidden, f"{name} must hold no control characters", values)
    return ids.fill_null("").to_list()


def read_numbers(values: Sequence[object], name: str, check: ValueCheck) -> pl.Series:
    """Numbers as float64; null where the file leaves them empty."""
    text = _text_series(values).str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    wrong = text.is_not_null() & (text != "") & (numbers.is_null() | ~numbers.is_finite())
    check.reject(wrong.fill_null(True), f"{name} must be a number", values)
    return numbers


def read_seconds(values: Sequence[object], unit: Unit, check: ValueCheck) -> pl.Series:
    """Times as float64 seconds since 1970, UTC; every row must have one."""
    if unit == "iso" or any(isinstance(value, datetime.date) for value in values):
        seconds = pl.Series([_moment(value) for value in values], dtype=pl.Float64)
        rule = "timestamp must be an ISO date such as 2024-05-01T10:00:00"
    else:
        numbers = _text_series(values).str.strip_chars().cast(pl.Float64, strict=False)
        seconds = pl.Series(numbers.to_numpy() / _PER_SECOND[unit], nan_to_null=True)
        rule = f"timestamp must be a number {_UNIT_HINT.format(unit=unit)}"
    fine = seconds.is_finite() & (seconds.abs() < _LATEST_SECONDS)
    check.reject(~fine.fill_null(False), rule, values)
    return seconds


def read_text(values: Sequence[object]) -> pl.Series:
    """Text as it is; null where there is none, and other values as text."""
    return _text_series([v if isinstance(v, str | None) else str(v) for v in values])


def _moment(value: object) -> float | None:
    if isinstance(value, datetime.datetime):
        return parse_moment(value.isoformat())
    if isinstance(value, datetime.date | str):
        try:
            return parse_moment(str(value).strip())
        except ValueError:
            return None
    return None


def _is_odd(values: Iterable[object]) -> pl.Series:
    if set(map(type, values)) <= _PLAIN:
        return pl.Series([], dtype=pl.Boolean)
    return pl.Series([type(value) not in _PLAIN for value in values], dtype=pl.Boolean)


def _text_series(values: Sequence[object]) -> pl.Series:
    try:
        return pl.Series(values, dtype=pl.String, strict=False)
    except UnicodeEncodeError:  # lone surrogates, which JSON can spell and UTF-8 cannot
        mended = [
            v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in values
        ]
        return pl.Series(mended, dtype=pl.String, strict=False)

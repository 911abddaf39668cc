"""What a row of a report's side-by-side table is, and how its value is read and judged.

Owns the reading of measured vocabularies, which `report.py` lays out. Knows no measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["higher", "lower", "neither"]
Measured = Mapping[str, Any]
_SHOWN_LEVELS = 6


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the side-by-side table.

    Attributes:
        basis: what vocabularies must share for the row to compare them: items, vectors or data.
        meaning: a sentence or two for someone who sees the measure for the first time.
        read: the value; None where it could not be measured.
        show: the value in a table.
        judge: the value in plain words.
    """

    key: str
    title: str
    better: Better
    basis: Literal["items", "vectors", "data"]
    meaning: str
    read: Callable[[Measured], float | None]
    show: Callable[[Measured], str]
    judge: Callable[[float], str]


def pick_value(*path: str | int) -> Callable[[Measured], Any]:
    """A function that follows a path into a measured vocabulary; None where it ends early."""

    def read(measured: Measured) -> Any:
        value: Any = measured
        for step in path:
            if value is None:
                return None
            if isinstance(step, int):
                value = value[step] if step < len(value) else None
            else:
                value = value.get(step)
        return value

    return read


def mean_levels(key: str, of: str | None = None) -> Callable[[Measured], float | None]:
    """The mean over levels of a value, as a share of another one where it is named."""

    def read(measured: Measured) -> float:
        rows = measured["use"]["levels"]
        return float(sum(row[key] / (row[of] if of else 1) for row in rows) / len(rows))

    return read


def sum_levels(key: str) -> Callable[[Measured], float | None]:
    """The sum over levels of a value."""
    return lambda measured: sum(row[key] for row in measured["use"]["levels"])


def list_levels(key: str, form: str) -> Callable[[Measured], str]:
    """The values of the levels, one after the other, the first few where there are many."""

    def show(measured: Measured) -> str:
        texts = [format(row[key], form) for row in measured["use"]["levels"]]
        return " / ".join(texts[:_SHOWN_LEVELS] + ["…"] * (len(texts) > _SHOWN_LEVELS))

    return show


def format_value(read: Callable[[Measured], Any], form: str) -> Callable[[Measured], str]:
    """The value in a form of Python's format language."""
    return lambda measured: format(read(measured), form)


def grade_value(*steps: tuple[float, str], rest: str) -> Callable[[float], str]:
    """The words beside the first limit that the value reaches, from the top."""

    def judge(value: float) -> str:
        return next((words for limit, words in steps if value >= limit), rest)

    return judge

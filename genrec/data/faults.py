"""What is wrong with an input file, gathered until all of it has been read.

Owns the counting and wording of faults: one line a rule, with the first line numbers and values, so
that a file with five million faults of one kind does not hide a single one of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genrec.errors import DataError, join_problems

SPELLED = 5
_VALUE_CHARS = 60


@dataclass(slots=True)
class _Rule:
    count: int = 0
    places: list[str] = field(default_factory=list)


class Faults:
    """The faults of one file."""

    def __init__(self, path: Path) -> None:
        """Begin without faults."""
        self.path = path
        self._file: list[str] = []
        self._rules: dict[str, _Rule] = {}

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self._file or self._rules)

    def add_file(self, problem: str) -> None:
        """Record a fault of the file as a whole, once."""
        if problem not in self._file:
            self._file.append(problem)

    def add_line(self, rule: str, line: int, detail: str | None = None) -> None:
        """Record that a line (or a row of a Parquet file, from 1) breaks a rule."""
        self.add_lines(rule, [line], None if detail is None else [detail])

    def add_lines(
        self, rule: str, lines: Sequence[int], details: Sequence[object] | None = None
    ) -> None:
        """Record several lines that break one rule, with the value found on each."""
        if not lines:
            return
        known = self._rules.setdefault(rule, _Rule())
        known.count += len(lines)
        for place, line in enumerate(lines[: SPELLED - len(known.places)]):
            value = f" ({shorten(details[place])})" if details is not None else ""
            known.places.append(f"{line}{value}")

    def problems(self) -> list[str]:
        """One line for each rule that is broken."""
        name = self.path.name
        found = [f"{name}: {problem}" for problem in self._file]
        for rule, known in self._rules.items():
            noun = "line" if known.count == 1 else "lines"
            rest = known.count - len(known.places)
            more = f" and {rest:,} more" if rest else ""
            found.append(f"{name}: {rule}: {noun} {', '.join(known.places)}{more}")
        return found


def shorten(value: object) -> str:
    """A value as a message shows it: quoted if text, and never long."""
    text = value if isinstance(value, _Verbatim) else repr(value)
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 3] + "..."


class _Verbatim(str):
    """A detail that is a sentence of ours rather than a value of theirs."""

    __slots__ = ()


def as_note(text: str) -> str:
    """A detail that is shown without quotes."""
    return _Verbatim(text)


def raise_faults(gathered: Iterable[Faults]) -> None:
    """Raise one error that lists every fault of every file, if there are any.

    Raises:
        DataError: there are.
    """
    faulty = [faults for faults in gathered if faults]
    if not faulty:
        return
    problems = [problem for faults in faulty for problem in faults.problems()]
    files = ", ".join(str(faults.path) for faults in faulty)
    raise DataError(join_problems(f"cannot use {files}; nothing was written", problems))

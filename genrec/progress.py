"""Progress of long work: a bar on a terminal, plain log lines elsewhere.

Owns how waiting looks. Knows nothing of the work itself. Writes to standard error only, so that
answers on standard output stay clean.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
Advance = Callable[..., None]

LOG_EVERY_SECONDS = 10.0
_log = logging.getLogger(__name__)


@contextmanager
def show_progress(
    description: str, total: int | None = None, *, unit: str = "steps"
) -> Iterator[Advance]:
    """A function to call with the work done since last time, while the block runs.

    Args:
        description: what is being done, as `embedding items`.
        total: how much there is; None when unknown.
        unit: what is counted.

    Yields:
        `advance(n=1, note="")`: n more are done; the note (a loss, say) is shown beside the bar.
    """
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(description, total=total, note="", rate="")
            started = time.monotonic()

            def advance_bar(n: int = 1, note: str = "") -> None:
                bar.advance(task, n)
                done = bar.tasks[task].completed
                seconds = time.monotonic() - started
                bar.update(task, note=note, rate=f"{done / max(seconds, 1e-9):,.1f} {unit}/s")

            yield advance_bar
    else:
        yield _log_lines(description, total, unit)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )


def _log_lines(description: str, total: int | None, unit: str) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < LOG_EVERY_SECONDS:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = f", {(total - done) / max(rate, 1e-9):,.0f} s left" if total else ""
        of_total = f"/{total:,}" if total else ""
        tail = f", {note}" if note else ""
        _log.info(
            "%s: %s%s %s, %.1f/s%s%s", description, f"{done:,}", of_total, unit, rate, left, tail
        )

    return advance


def track_progress(
    iterable: Iterable[T], description: str, total: int | None = None, *, unit: str = "steps"
) -> Iterator[T]:
    """The same items, one by one, with progress shown; `total` is the length where it is known."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with show_progress(description, total, unit=unit) as advance:
        for value in iterable:
            yield value
            advance(1)

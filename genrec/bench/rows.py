"""What a benchmark gives: rows that machines and people read, and rivals timed in turn.

Owns the rows' shape and the fair order of runs. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One figure; `met` is None where no target is set."""

    name: str
    value: float
    unit: str
    target: float | None
    met: bool | None
    against: str


def build_row(
    name: str,
    value: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    against: str = "",
) -> BenchRow:
    """A row whose target is met by at most, or at least, so much; no target without either."""
    target = most if most is not None else least
    met = None
    if target is not None:
        met = bool(value <= target if most is not None else value >= target)
    return BenchRow(name, float(value), unit, target, met, against)


def report_rows(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """The rows under the machine's name, as `genrec bench NAME --json` writes them."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {"schema": 1, "machine": machine, "rows": [asdict(row) for row in rows]}


def time_rivals(
    rivals: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """The seconds of each rival's runs; in each round every rival runs once.

    Args:
        rivals: what to run, by name, in this order.
        repeats: rounds.
        warm_up: run each once before the clock counts.
    """
    if warm_up:
        for run in rivals.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds

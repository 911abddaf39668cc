"""Rivals timed in turn, with a word on who else used the processors.

Owns ratios between rivals and the sign of contention: a neighbour on one core can slow a run many
times over, because threads wait for each other. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genrec.bench.rows import BenchRow, build_row, time_rivals

_PROC_STAT = Path("/proc/stat")
# Fields of its first line that count work: user, nice, system, irq, softirq, steal.
_WORK_FIELDS = (0, 1, 2, 5, 6, 7)
_FAIR_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Timing:
    """What rivals took.

    Attributes:
        seconds: of each run, by rival.
        others: the share of the processors that other programs had meanwhile; None where the
            system does not say.
    """

    seconds: dict[str, list[float]]
    others: float | None

    def median(self, name: str) -> float:
        """The median seconds of one rival's runs."""
        return float(np.median(self.seconds[name]))

    def compare(self, slower: str, faster: str) -> float:
        """How many times as long `slower` takes: of rounds that both ran, the median."""
        slow, fast = np.array(self.seconds[slower]), np.array(self.seconds[faster])
        if len(slow) != len(fast):
            return self.median(slower) / self.median(faster)
        return float(np.median(slow / fast))

    def describe_others(self, where: str) -> list[BenchRow]:
        """A row that says whether the figures are fair."""
        if self.others is None:
            return []
        seen = self.others > _FAIR_SHARE
        said = "CONTENTION, run this again on a quiet machine: " if seen else ""
        return [
            build_row(
                f"{where}: {said}processors in use by others",
                self.others,
                f"share, fair below {_FAIR_SHARE}",
            )
        ]


def time_watched(
    rivals: Mapping[str, Callable[[], object]],
    repeats: int,
    slow: Mapping[str, Callable[[], object]] | None = None,
) -> Timing:
    """Time rivals in turn; those that take minutes run once, without a run to warm up.

    Args:
        rivals: what to run, by name.
        repeats: rounds.
        slow: what runs once.
    """
    watch = _Watch()
    seconds = time_rivals(slow or {}, 1, warm_up=False)
    seconds |= time_rivals(rivals, repeats)
    return Timing(seconds, watch.find_others())


def wait_for(device: str) -> None:
    """Let a GPU finish, so that the clock shows what it took."""
    if device != "cpu":
        torch.cuda.synchronize()


class _Watch:
    """How long others had the processors since it was made."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.perf_counter(), _read_busy(), _read_own()

    def find_others(self) -> float | None:
        busy = _read_busy()
        if busy is None or self._busy is None:
            return None
        elapsed = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        return max(busy - self._busy - (_read_own() - self._own), 0.0) / elapsed


def _read_busy() -> float | None:
    """Seconds that the processors have worked since the start, all programs together."""
    try:
        fields = _PROC_STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    return sum(int(fields[place]) for place in _WORK_FIELDS) / float(os.sysconf("SC_CLK_TCK"))


def _read_own() -> float:
    """Seconds of them that this program has used, finished child processes included."""
    return sum(os.times()[:4])

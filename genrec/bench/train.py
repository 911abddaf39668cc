"""LoRA training: what packing and training rows as rows gain, and against whom.

Owns which sections there are. Each can run alone; the sections' modules measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genrec.bench.rows import BenchRow, report_rows
from genrec.bench.train_device import bench_device
from genrec.bench.train_memory import bench_memory
from genrec.bench.train_options import TrainBench
from genrec.bench.train_packing import bench_packing
from genrec.recipe import find_choice

SECTIONS: dict[str, Callable[[TrainBench], list[BenchRow]]] = {
    "packing": bench_packing,
    "memory": bench_memory,
    "device": bench_device,
}


def bench_train(options: TrainBench, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of all sections, or of some, as `genrec bench` writes them.

    Args:
        options: sizes, data and device.
        only: sections' names; all when empty.

    Raises:
        RecipeError: an unknown section, or a device that is not there.
    """
    chosen = [find_choice("bench section", name, SECTIONS) for name in only or SECTIONS]
    return report_rows([row for measure in chosen for row in measure(options)])

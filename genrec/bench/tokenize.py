"""Semantic-ID vocabularies: what fitting, encoding and uniqueness cost, and against whom.

Owns which sections there are. Each can run alone; the sections' modules measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genrec.bench.rows import BenchRow, report_rows
from genrec.bench.tokenize_device import bench_device
from genrec.bench.tokenize_fit import bench_rqkmeans, bench_rqvae
from genrec.bench.tokenize_options import TokenizeBench
from genrec.bench.tokenize_scale import bench_encode, bench_unique
from genrec.recipe import find_choice

SECTIONS: dict[str, Callable[[TokenizeBench], list[BenchRow]]] = {
    "rqvae": bench_rqvae,
    "rqkmeans": bench_rqkmeans,
    "unique": bench_unique,
    "encode": bench_encode,
    "device": bench_device,
}


def bench_tokenize(options: TokenizeBench, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of all sections, or of some, as `genrec bench` writes them.

    Args:
        options: sizes, data and device.
        only: sections' names; all when empty.

    Raises:
        MissingExtraError: a rival is not installed.
        RecipeError: an unknown section.
    """
    chosen = [find_choice("bench section", name, SECTIONS) for name in only or SECTIONS]
    return report_rows([row for measure in chosen for row in measure(options)])

"""Decoding: the embedded engine and the vLLM engine against other ways, and what exactness costs.

Owns which sections there are. Each can run alone; the sections' modules measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genrec.bench.decode_catalogue import bench_catalogue
from genrec.bench.decode_device import bench_device
from genrec.bench.decode_exact import bench_exact
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_speed import bench_qwen, bench_small
from genrec.bench.rows import BenchRow, report_rows
from genrec.bench.vllm_decode import bench_vllm, has_vllm
from genrec.recipe import find_choice

SECTIONS: dict[str, Callable[[DecodeBench], list[BenchRow]]] = {
    "small": bench_small,
    "qwen": bench_qwen,
    "catalogue": bench_catalogue,
    "exact": bench_exact,
    "vllm": bench_vllm,
    "device": bench_device,
}


def bench_decode(options: DecodeBench, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of all sections, or of some, as `genrec bench` writes them.

    Args:
        options: sizes, rounds and device.
        only: sections' names; all when empty, `vllm` where it is installed.

    Raises:
        RecipeError: an unknown section, or a device that is not there.
        MissingExtraError: the section vllm without vLLM.
    """
    every = [name for name in SECTIONS if name != "vllm" or has_vllm()]
    chosen = [find_choice("bench section", name, SECTIONS) for name in only or every]
    return report_rows([row for measure in chosen for row in measure(options)])

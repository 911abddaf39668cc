"""The embedded engine on a device: queries a second, and milliseconds against the floor.

Owns the section `device` and its rows. Weights are random: they cost the same as trained ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from genrec.bench.decode_models import QWEN3_17B, QWEN_WORDS, Setup, build_setup
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_rivals import (
    Allowed,
    build_allowed,
    list_products,
    run_products,
    search_copies,
)
from genrec.bench.decode_timing import time_watched, wait_for
from genrec.bench.rows import BenchRow, build_row
from genrec.bench.train_model import QWEN3_06B, TINY
from genrec.decode.engine import Normalize, Search
from genrec.errors import RecipeError

WIDTHS = (20, 50, 256)
BATCHES = (1, 8, 64)
# Beams that the copying loop is tried with: it holds all logits of each, and as many caches.
_MOST_COPIES = 512
_MODES: tuple[Normalize, ...] = ("level", "vocab")


def bench_device(options: DecodeBench) -> list[BenchRow]:
    """bf16 on the 0.6B and 1.7B shapes; on the CPU a small model, to see that it runs.

    Raises:
        RecipeError: the machine has no GPU, and one was asked for.
    """
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        raise RecipeError(
            f"--device is {options.device!r}, but torch sees no GPU; use --device cpu, or run it "
            f"where one is"
        )
    if options.quick or not on_gpu:
        small = replace(options, quick=True)
        return _bench_shape("tiny", TINY, small.sizes.n_words, small, (4,), (1, 2))
    rows = []
    shapes: dict[str, dict[str, Any]] = {"0.6B": QWEN3_06B, "1.7B": QWEN3_17B}
    for name, shape in shapes.items():
        rows += _bench_shape(f"Qwen3-{name} shape", shape, QWEN_WORDS, options, WIDTHS, BATCHES)
        torch.cuda.empty_cache()
    return rows


def _bench_shape(
    name: str,
    shape: dict[str, Any],
    n_words: int,
    options: DecodeBench,
    widths: tuple[int, ...],
    batches: tuple[int, ...],
) -> list[BenchRow]:
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    setup = build_setup(
        f"{name} on {options.device}, {str(dtype).removeprefix('torch.')}",
        shape,
        options.sizes,
        n_words,
        dtype=dtype,
        device=options.device,
    )
    allowed = build_allowed(setup)
    rows = []
    for width in widths:
        wide = replace(setup, sizes=replace(setup.sizes, width=width))
        for n_prompts in batches:
            rows += _bench_size(wide, n_prompts, allowed, options)
    return rows


def _bench_size(
    setup: Setup, n_prompts: int, allowed: Allowed, options: DecodeBench
) -> list[BenchRow]:
    prompts, width = setup.draw_prompts(n_prompts), setup.sizes.width
    rivals: dict[str, Callable[[], object]] = {}
    for mode in _MODES:
        search = Search(width, mode)
        rank = partial(setup.engine.rank_prompts, prompts.tolist(), width, search)
        multiply = partial(run_products, list_products(setup, n_prompts, vocab=mode == "vocab"))
        rivals[mode] = partial(_finish, rank, options.device)
        rivals[f"floor {mode}"] = partial(_finish, multiply, options.device)
    if n_prompts * width <= _MOST_COPIES:
        loop = partial(search_copies, setup, prompts, allowed)
        rivals["loop"] = partial(_finish, loop, options.device)
    timing = time_watched(rivals, options.repeats)
    rows = []
    for mode in _MODES:
        where = f"{setup.name}, {setup.sizes.describe(n_prompts)}: engine {mode}"
        floor = timing.median(f"floor {mode}")
        rows += [
            build_row(where, n_prompts / timing.median(mode), "queries a second"),
            build_row(
                where,
                1000 * timing.median(mode),
                "milliseconds",
                against=f"its matrix products alone, {1000 * floor:.3g} milliseconds",
            ),
        ]
        if "loop" in rivals:
            faster = timing.compare("loop", mode)
            rows.append(
                build_row(
                    where,
                    faster,
                    "times faster",
                    against="loop that runs the prompt once and copies its cache",
                )
            )
    return rows


def _finish(run: Callable[[], object], device: str) -> None:
    run()
    wait_for(device)

"""A LoRA step of Qwen3-0.6B's shape on a device: tokens a second and model FLOP utilisation.

Owns the measurement and its rows. Weights are random: they cost the same as trained ones.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from genrec.bench.rows import BenchRow, build_row
from genrec.bench.train_model import QWEN3_06B, TINY, build_lora, count_flops
from genrec.bench.train_options import TrainBench
from genrec.bench.train_packing import describe_batches, describe_speed
from genrec.bench.train_rivals import Batches, time_ways
from genrec.bench.train_rows import BenchRows, draw_batches, make_rows
from genrec.errors import RecipeError

SHEET_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 products a second by the makers' data sheets, by what the device's name contains."""
_QWEN_VOCABULARY = 151_936
_BATCH_SIZE, _BATCHES = 64, 12
_PRODUCT_RUNS = 20


def bench_device(options: TrainBench) -> list[BenchRow]:
    """Each way on the GPU; on the CPU a small model, to see that it runs.

    Raises:
        RecipeError: the machine has no GPU, and one was asked for.
    """
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise RecipeError(
            "--device is 'cuda', but torch sees no GPU; use --device cpu, or run it where one is"
        )
    made = make_rows(options)
    small = options.quick or not on_gpu
    shape = TINY if small else QWEN3_06B
    batches = draw_batches(made.rows, *((2, 4) if small else (_BATCHES, _BATCH_SIZE)))
    dtype = torch.bfloat16 if on_gpu else torch.float32
    vocabulary, sid_tokens = _place_tokens(made, small=small)
    build = partial(build_lora, shape, vocabulary, sid_tokens, dtype=dtype, device=options.device)
    timed = time_ways(build, made.rows, batches, options.repeats)
    where = (
        f"{made.name} on {options.device}, hidden {shape['hidden_size']}, "
        f"{shape['num_hidden_layers']} layers, V {vocabulary:,}, {len(batches[0])} rows a batch"
    )
    flops = _count_useful(build(), batches)
    peaks = _find_peaks(options.device, dtype)
    return [
        *describe_batches(where, batches),
        *describe_speed(where, timed, batches, None),
        *(
            build_row(
                f"{where}: {name}, model FLOP utilisation",
                flops / float(np.median(timed.seconds[name])) / peak,
                "share",
                against=against,
            )
            for against, peak in peaks.items()
            for name in timed.seconds
        ),
    ]


def _place_tokens(made: BenchRows, *, small: bool) -> tuple[int, list[int]]:
    """The vocabulary, and its semantic-ID tokens: Qwen3's own size, or the rows' own."""
    if small:
        return made.vocabulary, made.sid_tokens
    return _QWEN_VOCABULARY + len(made.sid_tokens), made.sid_tokens


def _count_useful(model: Any, batches: Batches) -> float:
    rows = [row for batch in batches for row in batch]
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    targets = int(lengths.sum()) - sum(row.n_prompt for row in rows)
    return count_flops(model, lengths, targets)


def _find_peaks(device: str, dtype: torch.dtype) -> dict[str, float]:
    """What utilisation is a share of: large products measured here, and the data sheet."""
    size = 8192 if device == "cuda" else 512
    matrix = torch.randn(size, size, device=device).to(dtype)
    matrix @ matrix
    _wait_for(device)
    started = time.perf_counter()
    for _ in range(_PRODUCT_RUNS):
        matrix @ matrix
    _wait_for(device)
    rate = 2 * size**3 * _PRODUCT_RUNS / (time.perf_counter() - started)
    peaks = {f"products of {size} x {size} measured here, {rate / 1e12:.3g} TFLOP/s": rate}
    name = _name_device(device)
    for known, sheet in SHEET_FLOPS.items():
        if known in name:
            peaks[f"data sheet of {known}, dense bf16"] = sheet
            break
    return peaks


def _name_device(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

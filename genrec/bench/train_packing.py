"""Packed rows against padded ones: useful tokens a second, and the loss.

Owns the measurement and its rows. Absolute speeds depend on the machine; the ratios are the
figures.
"""

from __future__ import annotations

from functools import partial
from statistics import fmean

import numpy as np

from genrec.bench.rows import BenchRow, build_row
from genrec.bench.train_model import SMALL, TINY, build_lora
from genrec.bench.train_options import TrainBench
from genrec.bench.train_rivals import Batches, Timed, time_ways
from genrec.bench.train_rows import draw_batches, make_rows

SPEED_TARGET = 2.0
LOSS_TARGET = 0.01
_BATCH_SIZE, _BATCHES = 16, 8
_NAMES = {
    "packed": "packed",
    "padded": "padded, head over the targets only",
    "lcrec": "padded as LC-Rec does",
}


def bench_packing(options: TrainBench) -> list[BenchRow]:
    """Tokens a second of each way on the same batches of a small model, and what each loses."""
    made = make_rows(options)
    batch_size, n_batches = (4, 2) if options.quick else (_BATCH_SIZE, _BATCHES)
    batches = draw_batches(made.rows, n_batches, batch_size)
    shape = TINY if options.quick else SMALL
    build = partial(build_lora, shape, made.vocabulary, made.sid_tokens)
    timed = time_ways(build, made.rows, batches, options.repeats)
    where = (
        f"{made.name}, hidden {shape['hidden_size']}, {shape['num_hidden_layers']} layers, "
        f"V {made.vocabulary:,}, {batch_size} rows a batch"
    )
    return [
        *describe_batches(where, batches),
        *describe_speed(where, timed, batches, options.target(SPEED_TARGET)),
        *_describe_loss(where, timed, options),
    ]


def describe_batches(where: str, batches: Batches) -> list[BenchRow]:
    """How long the rows are, and how much padding to the longest adds."""
    lengths = [np.array([len(row.input_ids) for row in rows]) for rows in batches]
    padded = sum(int(batch.max()) * len(batch) for batch in lengths)
    tokens = sum(int(batch.sum()) for batch in lengths)
    return [
        build_row(f"{where}: row", float(np.concatenate(lengths).mean()), "tokens"),
        build_row(f"{where}: padding in a batch", 1 - tokens / padded, "share of positions"),
    ]


def describe_speed(
    where: str, timed: Timed, batches: Batches, target: float | None
) -> list[BenchRow]:
    """Useful tokens a second of each way, and how many times as fast packing is."""
    tokens = sum(len(row.input_ids) for rows in batches for row in rows)
    rows = [
        build_row(f"{where}: {text}", tokens / float(np.median(seconds)), "useful tokens/s")
        for text, seconds in ((_NAMES[name], timed.seconds[name]) for name in _NAMES)
    ]
    for rival, least in (("lcrec", target), ("padded", None)):
        ratio = timed.compare_speed("packed", rival)
        rows.append(
            build_row(f"{where}: packed", ratio, "times faster", least=least, against=_NAMES[rival])
        )
    return rows


def _describe_loss(where: str, timed: Timed, options: TrainBench) -> list[BenchRow]:
    means = {name: fmean(losses) for name, losses in timed.losses.items()}
    rows = [
        build_row(f"{where}: {_NAMES[name]}", mean, "loss per target token")
        for name, mean in means.items()
    ]
    difference = abs(means["packed"] / means["lcrec"] - 1)
    return [
        *rows,
        build_row(
            f"{where}: loss, packed",
            difference,
            "relative difference",
            most=options.target(LOSS_TARGET),
            against=_NAMES["lcrec"],
        ),
    ]

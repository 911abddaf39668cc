"""Uniqueness of a million items, and encoding from disk: time that is linear, memory that is flat.

Owns the measurements and their rows. Memory is that of a fresh process, from fitted weights and
memory-mapped vectors to a tokenizer's directory on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from genrec.bench.made_vectors import make_vectors
from genrec.bench.rows import BenchRow, build_row
from genrec.bench.tokenize_options import TokenizeBench
from genrec.manifest import read_json, write_json
from genrec.memory import read_peak, reset_peak
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.measures.code_use import count_groups
from genrec.tokenizers.quantizers.quantizer import Quantizer, build_quantizer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import code_items, separate_items
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.tokenizers.vectors import CHUNK_ROWS, ShardedVectors, map_tensor, write_shards

MILLION = 1_000_000
LATENT_WIDTH, VECTOR_WIDTH = 32, 384
UNIQUE_SECONDS = 60.0
GOAL_ITEMS, GOAL_BYTES = 10 * MILLION, 8e9
SAMPLE = 100_000
SHARDS = 4


def bench_unique(options: TokenizeBench) -> list[BenchRow]:
    """The policy `assign` on codes that collide as those of a large catalogue do."""
    items = options.items or MILLION
    vectors = np.concatenate(list(make_vectors(items, LATENT_WIDTH)))
    recipe = options.read_recipe("rqkmeans", f"rqkmeans.sample_items={SAMPLE}")
    given = FitInput(tuple(map(str, range(items))), vectors)
    quantizer = build_quantizer(recipe, LATENT_WIDTH)
    quantizer.fit(given)
    codes = quantizer.encode(given)
    started = time.perf_counter()
    assignment = separate_items(recipe, quantizer, given, codes)
    seconds = time.perf_counter() - started
    where = f"uniqueness, {items:,} items"
    left = items - len(count_groups(assignment.codes))
    return [
        build_row(f"{where}: assign", seconds, "seconds", most=options.target(UNIQUE_SECONDS)),
        build_row(
            f"{where}: collisions before", 1 - len(count_groups(codes)) / items, "share of items"
        ),
        build_row(f"{where}: moved", float(assignment.moved.mean()), "share of items"),
        build_row(f"{where}: items without codes of their own", left, "items", most=0),
    ]


@dataclass(frozen=True, slots=True)
class _Cost:
    """What coding so many items took; bytes are above those of the process before it began."""

    items: int
    encode_seconds: float
    seconds: float
    cpu_seconds: float
    base_bytes: int
    grown_bytes: int


def bench_encode(options: TokenizeBench) -> list[BenchRow]:
    """Encoding a quarter, half and all of a million vectors on disk, each in a fresh process.

    Vectors are 384 wide; the whole is what `genrec tokenize fit` does once it has fitted: encode,
    make unique, measure, write.
    """
    items = (options.items or MILLION) // SHARDS * SHARDS
    recipe = options.read_recipe("rqvae")
    with tempfile.TemporaryDirectory(prefix="genrec-bench-") as name:
        folder = Path(name)
        row_bytes = VECTOR_WIDTH * np.float32().itemsize
        write_shards(make_vectors(items, VECTOR_WIDTH), folder, items // SHARDS * row_bytes)
        _fit_sample(recipe, folder)
        costs = [_measure_apart(folder, shards) for shards in (1, 2, SHARDS)]
    return _describe_costs(costs, options)


def _fit_sample(recipe: TokenizeRecipe, folder: Path) -> None:
    """Leave a quantizer that was fitted for a moment; encoding costs the same with any weights."""
    short = {"max_epochs": 2, "warmup_epochs": 1}
    quick = recipe.model_copy(update={"rqvae": recipe.rqvae.model_copy(update=short)})
    shard = _open_some(folder, 1)
    rows = shard[: min(len(shard), SAMPLE)]
    quantizer = build_quantizer(quick, VECTOR_WIDTH)
    quantizer.fit(FitInput(tuple(map(str, range(len(rows)))), rows))
    save_file(quantizer.list_weights(), folder / "weights.safetensors")
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))


def _open_some(folder: Path, shards: int) -> ShardedVectors:
    paths = sorted(folder.glob("embeddings-*.safetensors"))[:shards]
    return ShardedVectors([map_tensor(path, "embeddings") for path in paths])


def _measure_apart(folder: Path, shards: int) -> _Cost:
    """The cost in a process of its own, whose memory nothing else has touched."""
    call = f"from {__name__} import measure_coding; measure_coding({str(folder)!r}, {shards})"
    subprocess.run([sys.executable, "-c", call], check=True, capture_output=True)
    return _Cost(**read_json(folder / f"cost-{shards}.json"))


def measure_coding(folder: str, shards: int) -> None:
    """Leave in `cost-N.json` what coding the first N shards took, in this process."""
    source = Path(folder)
    recipe = TokenizeRecipe.model_validate(
        json.loads((source / "recipe.json").read_text(encoding="utf-8"))
    )
    quantizer = build_quantizer(recipe, VECTOR_WIDTH)
    quantizer.restore_weights(load_file(source / "weights.safetensors"))
    vectors = _open_some(source, shards)
    # Libraries take their buffers at the first call; they are not the items' share.
    quantizer.encode(FitInput(("",) * min(len(vectors), CHUNK_ROWS), vectors[:CHUNK_ROWS]))
    reset_peak()
    base = read_peak()
    started, worked = time.perf_counter(), time.process_time()
    ids = tuple(f"item-{row}" for row in range(len(vectors)))
    clock = _Clock()
    result = code_items(recipe, quantizer, FitInput(ids, vectors), [], clock)
    result.tokenizer.save_pretrained(source / f"tokenizer-{shards}")
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    cost = {
        "items": len(vectors),
        "encode_seconds": clock.seconds,
        "seconds": seconds,
        "cpu_seconds": worked,
        "base_bytes": base,
        "grown_bytes": read_peak() - base,
    }
    write_json(source / f"cost-{shards}.json", cost)


class _Clock:
    """An engine that encodes here and notes how long it took."""

    seconds = 0.0

    def encode_items(
        self, recipe: TokenizeRecipe, quantizer: Quantizer, given: FitInput
    ) -> CodeArray:
        """The quantizer's codes."""
        del recipe
        started = time.perf_counter()
        codes = quantizer.encode(given)
        self.seconds = time.perf_counter() - started
        return codes


def _describe_costs(costs: list[_Cost], options: TokenizeBench) -> list[BenchRow]:
    rows = []
    for cost in costs:
        where = f"coding, {cost.items:,} x {VECTOR_WIDTH}"
        rows += [
            build_row(f"{where}: encode", cost.items / cost.encode_seconds, "items a second"),
            build_row(f"{where}: whole", cost.items / cost.seconds, "items a second"),
            build_row(f"{where}: memory grown", cost.grown_bytes / 1e6, "MB"),
        ]
    small, large = costs[0], costs[-1]
    more = large.items - small.items
    bytes_each = (large.grown_bytes - small.grown_bytes) / more
    goal = large.base_bytes + large.grown_bytes + bytes_each * (GOAL_ITEMS - large.items)
    # Processor time, since a neighbour who comes or goes between two sizes would bend the line.
    ratio = (large.cpu_seconds / large.items) / (small.cpu_seconds / small.items)
    against = f"{large.items:,} against {small.items:,} items; 1 is linear"
    return [
        *rows,
        build_row("coding: processor time an item", ratio, "ratio", against=against),
        build_row("coding: memory an item", bytes_each, "bytes"),
        build_row(
            f"coding: memory at {GOAL_ITEMS:,} items, extrapolated",
            goal / 1e9,
            "GB",
            most=None if options.target(GOAL_BYTES) is None else GOAL_BYTES / 1e9,
        ),
    ]

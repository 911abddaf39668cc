"""RQ-VAE training and encoding on a device, against the time of its matrix products alone.

Owns the measurement and its rows. The products are those of the network's layers, forward and
backward, and of the distances to the codes: what no implementation could leave out.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from genrec.bench.made_vectors import make_vectors
from genrec.bench.rows import BenchRow, build_row
from genrec.bench.tokenize_options import TokenizeBench
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.device import find_device
from genrec.tokenizers.quantizers.quantizer import build_quantizer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray

WIDTH = 768
GPU_ITEMS, CPU_ITEMS = 1_000_000, 20_000
_PRODUCT_STEPS = 50


def bench_device(options: TokenizeBench) -> list[BenchRow]:
    """Training steps and encoded items a second, and the share of it that is matrix products.

    On a GPU a million vectors of 768 values, on a CPU 20,000.

    Raises:
        RecipeError: a device that this machine does not have.
    """
    device = find_device(options.device, "--device")
    on_gpu = device.type == "cuda"
    items = options.items or (GPU_ITEMS if on_gpu else CPU_ITEMS)
    vectors = np.concatenate(list(make_vectors(items, WIDTH)))
    recipe = options.read_recipe("rqvae", f"rqvae.device={options.device}")
    values = recipe.rqvae
    step_seconds, encode_seconds = _time_training(recipe, vectors)
    sizes = (WIDTH, *values.hidden_sizes, values.latent_size)
    train_products = _time_products(
        _build_step(sizes, recipe.codebook_sizes, values.batch_size, device, backward=True), device
    )
    read_products = _time_products(
        _build_step(sizes, recipe.codebook_sizes, values.batch_size, device, backward=False), device
    )
    where = f"RQ-VAE on {options.device}, {items:,} x {WIDTH}"
    alone = "the same matrix products alone, float32"
    read_seconds = read_products * items / values.batch_size
    return [
        build_row(f"{where}: training", 1 / step_seconds, "steps a second"),
        build_row(
            f"{where}: training, products' share",
            train_products / step_seconds,
            "share of time",
            against=alone,
        ),
        build_row(f"{where}: encoding", items / encode_seconds, "items a second"),
        build_row(
            f"{where}: encoding, products' share",
            read_seconds / encode_seconds,
            "share of time",
            against=alone,
        ),
    ]


def _time_training(recipe: TokenizeRecipe, vectors: FloatArray) -> tuple[float, float]:
    """Seconds of a training step with codes, and of encoding all items.

    A long run less a short one leaves whole epochs: placing the codes and starting fall away.
    """
    given = FitInput(tuple(map(str, range(len(vectors)))), vectors)
    seconds = {}
    for epochs in (2, 4):
        change = {"max_epochs": epochs, "warmup_epochs": 1, "patience_epochs": epochs}
        short = recipe.model_copy(update={"rqvae": recipe.rqvae.model_copy(update=change)})
        quantizer = build_quantizer(short, WIDTH)
        started = time.perf_counter()
        quantizer.fit(given)
        seconds[epochs] = time.perf_counter() - started
    trained = len(vectors) * (1 - recipe.rqvae.valid_share)
    steps = 2 * math.ceil(trained / recipe.rqvae.batch_size)
    quantizer.encode(given.select_items(np.arange(min(1024, len(vectors)))))
    started = time.perf_counter()
    quantizer.encode(given)
    return max(seconds[4] - seconds[2], 1e-9) / steps, time.perf_counter() - started


def _build_step(
    sizes: tuple[int, ...],
    codebook_sizes: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    *,
    backward: bool,
) -> Callable[[], object]:
    """One step's matrix products: encoder, distances to the codes and, in training, the rest."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    widths = sizes + sizes[-2::-1] if backward else sizes
    layers = [
        (draw(batch_size, before), draw(before, after), draw(batch_size, after))
        for before, after in itertools.pairwise(widths)
    ]
    books = [(draw(batch_size, sizes[-1]), draw(sizes[-1], size)) for size in codebook_sizes]

    def run() -> object:
        for number, (inputs, weights, gradients) in enumerate(layers):
            inputs @ weights
            if backward:
                inputs.T @ gradients
                if number:  # nothing is asked of the vectors themselves
                    gradients @ weights.T
        for latents, book in books:
            latents @ book
        return layers

    return run


def _time_products(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of one step's products."""
    taken = []
    for _ in range(5):
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(_PRODUCT_STEPS):
            run()
        _wait_for(device)
        taken.append((time.perf_counter() - started) / _PRODUCT_STEPS)
    return median(taken[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

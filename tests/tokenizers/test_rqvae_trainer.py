"""The schedule of a training run, its further losses, and the scale it finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers import rqvae_trainer
from genrec.tokenizers.quantizers.losses import AuxiliaryLoss, TrainBatch
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.quantizers.rqvae_rows import measure_scale
from genrec.tokenizers.recipe import TokenizeRecipe

from .conftest import plant_clusters
from .test_quantizers import give_vectors
from .test_rqvae import fit_rqvae, write_recipe


def test_training_stops_early_and_keeps_the_best() -> None:
    vectors = plant_clusters(200)
    quantizer, history = fit_rqvae(vectors, max_epochs=400, patience_epochs=3, learning_rate=0.02)
    assert len(history) < 400
    assert [record["warmup"] for record in history[:9]] == [1.0] * 8 + [0.0]
    quantized = [record["valid_error"] for record in history[8:]]
    # No epoch of the patience at the end was better than the one that was kept.
    assert min(quantized[:-3]) <= min(quantized[-3:]) * 1.001 + 1e-9
    codes = quantizer.encode(give_vectors(vectors))
    error = ((vectors - quantizer.decode_codes(codes)) ** 2).mean() / vectors.var(axis=0).mean()
    assert error < 2 * min(quantized)


def test_warmup_may_be_left_out() -> None:
    vectors = plant_clusters(60)
    _, history = fit_rqvae(vectors, max_epochs=2, warmup_epochs=0)
    assert [record["warmup"] for record in history] == [0.0, 0.0]
    _, history = fit_rqvae(vectors, max_epochs=2, warmup_epochs=5)
    assert [record["warmup"] for record in history] == [1.0, 0.0]


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which each look takes a second."""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(rqvae_trainer.time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("fast_clock")
@pytest.mark.parametrize("seconds", [1, 9, 40])
def test_time_ends_training_in_usable_codes(seconds: int) -> None:
    vectors = plant_clusters(60)
    quantizer, history = fit_rqvae(vectors, max_epochs=200, max_seconds=seconds, batch_size=8)
    assert history[-1]["warmup"] == 0.0
    assert len(history) <= 2 + seconds
    codes = quantizer.encode(give_vectors(vectors))
    assert len(np.unique(codes[:, 0])) > 1


def test_the_learning_rate_falls_when_validation_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5] * 4 + [0.4, *[0.3] * 40])
    monkeypatch.setattr(rqvae_trainer.RqVaeTrainer, "_validate", lambda *_: next(errors))
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *given: rates.append(self.param_groups[0]["lr"]) or step(self, *given),
    )
    fit_rqvae(plant_clusters(40), warmup_epochs=4, patience_epochs=9, max_epochs=60)
    assert rates[:9] == [5e-3] * 9
    assert len(rates) == 5 + 1 + 9
    assert rates[-1] == pytest.approx(5e-3 * 0.3**2)


class PullLoss:
    """Pulls latents to a learned point, and writes down what it saw."""

    def __init__(self, n_items: int, width: int) -> None:
        self.point = nn.Parameter(torch.ones(width))
        self.first_point = self.point.detach().clone()
        self.epochs: list[list[tuple[int, ...]]] = []
        self.batches: list[TrainBatch] = []
        self.n_items = n_items

    def parameters(self) -> Iterable[nn.Parameter]:
        return [self.point]

    def start_epoch(self, codebooks: Sequence[Tensor]) -> None:
        self.epochs.append([tuple(book.shape) for book in codebooks])

    def measure(self, batch: TrainBatch) -> Tensor:
        self.batches.append(batch)
        return 0.1 * (batch.latents - self.point).square().mean()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_further_losses_train_along(update: str) -> None:
    vectors = plant_clusters(90, noise=0.3)
    made: list[PullLoss] = []

    def make(recipe: TokenizeRecipe, given: FitInput, width: int) -> Sequence[AuxiliaryLoss]:
        assert recipe.rqvae.latent_size == width
        made.append(PullLoss(given.n_items, width))
        return made

    values: dict[str, Any] = {
        "max_epochs": 12, "warmup_epochs": 4, "batch_size": 32, "codebook_update": update,
        "valid_share": 0.1,
    }  # fmt: skip
    quantizer = RqVae(write_recipe(**values), 16, make_losses=make)
    history = quantizer.fit(give_vectors(vectors))
    loss = made[0]
    assert len(made) == 1
    assert loss.n_items == 90
    assert loss.epochs == [[(8, 8)] * 3] * 8
    assert not torch.equal(loss.point.detach(), loss.first_point)
    for batch in loss.batches:
        n = len(batch.rows)
        assert batch.rows.dtype == batch.codes.dtype == torch.int64
        assert batch.latents.shape == batch.quantized.shape == (n, 8)
        assert batch.latents.requires_grad
        assert batch.quantized.requires_grad
        assert batch.codes.shape == (n, 3)
        assert [book.requires_grad for book in batch.codebooks] == [update == "gradient"] * 3
    # Each epoch sees each training item once.
    seen = torch.cat([batch.rows for batch in loss.batches[:3]])
    assert len(seen) == len(seen.unique()) == 81
    assert [record["auxiliary"] for record in history[:4]] == [0.0] * 4
    assert all(0 < record["auxiliary"] < record["loss"] for record in history[4:])
    plain = RqVae(write_recipe(**values), 16)
    plain.fit(give_vectors(vectors))
    distances = [
        float(((one.project(give_vectors(vectors)) - loss.point.detach().numpy()) ** 2).mean())
        for one in (quantizer, plain)
    ]
    assert distances[0] < distances[1]


@pytest.mark.parametrize("n", [1, 7, 100])
def test_the_scale_is_that_of_all_vectors(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = plant_clusters(n, noise=0.4) * 3 + 5
    center, deviation = measure_scale(vectors)
    np.testing.assert_allclose(center, vectors.mean(axis=0), rtol=1e-5)
    expected = np.sqrt(vectors.astype(np.float64).var(axis=0).mean()) if n > 1 else 1.0
    assert deviation == pytest.approx(expected, rel=1e-6)
    read = rqvae_trainer.measure_scale.__globals__["read_chunks"]
    monkeypatch.setitem(measure_scale.__globals__, "read_chunks", lambda rows: read(rows, 3))
    chunked, again = measure_scale(vectors)
    np.testing.assert_allclose(chunked, center, rtol=1e-6)
    assert again == pytest.approx(deviation, rel=1e-9)


def test_vectors_that_differ_by_rounding_alone_are_not_blown_up() -> None:
    vectors = np.full((50, 4), 0.1, dtype=np.float32)
    vectors[::2] = np.nextafter(vectors[::2], np.float32(1))
    assert measure_scale(vectors)[1] == 1.0
    assert measure_scale(np.zeros((5, 3), dtype=np.float32))[1] == 1.0


def test_many_items_are_placed_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = plant_clusters(200)
    monkeypatch.setattr(rqvae_trainer, "_MOST_TO_PLACE", 50)
    monkeypatch.setattr(rqvae_trainer, "_MOST_TO_HOLD_OUT", 10)
    monkeypatch.setattr(rqvae_trainer, "_CHUNK_ITEMS", 16)
    placed: list[int] = []
    quantizer = RqVae(write_recipe(max_epochs=10, warmup_epochs=2, batch_size=32), 16)
    codes = quantizer._network.codes
    original = codes.place_codes
    monkeypatch.setattr(
        codes, "place_codes", lambda rows, n: placed.append(len(rows)) or original(rows, n)
    )
    history = quantizer.fit(give_vectors(vectors))
    assert placed == [50]
    assert history[-1]["valid_error"] < 0.3

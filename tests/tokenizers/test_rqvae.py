"""RQ-VAE as a quantizer: what it learns, encodes and keeps.

What every quantizer must do is in `test_contract.py`; single batches are in `test_rqvae_codes.py`,
the schedule in `test_rqvae_trainer.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrec.errors import ArtifactError, RecipeError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import assign_unique
from genrec.tokenizers.vectors import ShardedVectors
from genrec.types import FloatArray, IndexArray

from .conftest import plant_clusters
from .test_quantizers import give_vectors

QUICK: dict[str, Any] = {
    "hidden_sizes": [24],
    "latent_size": 8,
    "max_epochs": 25,
    "warmup_epochs": 8,
    "learning_rate": 5e-3,
    "device": "cpu",
}


def write_recipe(
    sizes: tuple[int, ...] = (8, 8, 8), seed: int = 0, **values: Any
) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate(
        {"codebook_sizes": sizes, "seed": seed, "rqvae": {**QUICK, **values}}
    )


def fit_rqvae(
    vectors: FloatArray, sizes: tuple[int, ...] = (8, 8, 8), **values: Any
) -> tuple[RqVae, list[dict[str, float]]]:
    quantizer = RqVae(write_recipe(sizes, **values), vectors.shape[1])
    return quantizer, quantizer.fit(give_vectors(vectors))


def measure_error(quantizer: RqVae, vectors: FloatArray) -> float:
    decoded = quantizer.decode_codes(quantizer.encode(give_vectors(vectors)))
    return float(((vectors - decoded) ** 2).mean() / vectors.var(axis=0).mean())


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "gradient": {"codebook_update": "gradient"},
    "LC-Rec": {
        "codebook_update": "gradient",
        "rotation_trick": False,
        "sinkhorn_epsilon": 0.003,
        "dead_code_share": 0.0,
        "warmup_epochs": 0,
    },
    "random codes": {"codebook_init": "random", "dead_code_share": 0.5},
    "straight-through": {"rotation_trick": False},
    "dropout": {"dropout": 0.05},
    "quantize dropout": {"quantize_dropout": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_finds_planted_clusters(way: str) -> None:
    vectors = plant_clusters(160, n_clusters=8)
    quantizer, history = fit_rqvae(
        vectors, max_epochs=30, batch_size=64, **{"learning_rate": 0.01, **WAYS[way]}
    )
    first = quantizer.encode(give_vectors(vectors))[:, 0]
    same = (np.arange(160) % 8)[:, None] == (np.arange(160) % 8)[None]
    shared = first[:, None] == first[None]
    assert shared[same].mean() > 0.7
    assert shared[~same].mean() < 0.15
    assert measure_error(quantizer, vectors) < 0.25
    assert all("auxiliary" not in record for record in history)


def test_ways_of_training_differ() -> None:
    vectors = plant_clusters(60, noise=0.5)
    last = {
        way: fit_rqvae(vectors, **{**WAYS[way], "max_epochs": 4, "warmup_epochs": 2})[1][-1]
        for way in WAYS
    }
    assert len({record["loss"] for record in last.values()}) == len(WAYS)


def test_an_items_codes_do_not_depend_on_its_neighbours() -> None:
    vectors = plant_clusters(200, noise=0.5, dimensions=33)
    quantizer, _ = fit_rqvae(vectors, (32, 32, 32), hidden_sizes=[70], latent_size=13)
    given = give_vectors(vectors)
    together = quantizer.encode(given)
    for rows in ([7], [199, 3], list(range(20, 51)), list(range(199, -1, -1))):
        alone = quantizer.encode(given.select_items(np.array(rows)))
        np.testing.assert_array_equal(alone, together[rows])
        latents = quantizer.project(given.select_items(np.array(rows)))
        np.testing.assert_allclose(latents, quantizer.project(given)[rows], rtol=0, atol=1e-6)


def test_codes_are_the_same_for_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = plant_clusters(100, noise=0.5)
    quantizer, _ = fit_rqvae(vectors)
    given = give_vectors(vectors)
    codes, latents = quantizer.encode(given), quantizer.project(given)
    decoded = quantizer.decode_codes(codes)
    monkeypatch.setattr("genrec.tokenizers.quantizers.rqvae._CHUNK_VALUES", 24 * 7)  # seven items
    np.testing.assert_array_equal(quantizer.encode(given), codes)
    np.testing.assert_allclose(quantizer.project(given), latents, rtol=0, atol=1e-6)
    np.testing.assert_allclose(quantizer.decode_codes(codes), decoded, rtol=0, atol=1e-6)


def test_codes_that_are_alike_go_to_the_first() -> None:
    vectors = np.tile(plant_clusters(3), (20, 1))
    quantizer, _ = fit_rqvae(vectors, (16, 16), max_epochs=4, warmup_epochs=1)
    weights = quantizer.list_weights()
    book = weights["codes.library.layers.0._codebook.embed"]
    book[0, 8:] = book[0, :8]
    quantizer.restore_weights(weights)
    codes = quantizer.encode(give_vectors(vectors))
    assert codes[:, 0].max() < 8


@pytest.mark.parametrize("way", ["default", "LC-Rec"])
def test_two_runs_are_the_same_bit_by_bit(way: str) -> None:
    vectors = plant_clusters(80)
    values = {**WAYS[way], "max_epochs": 6, "warmup_epochs": 2}
    before = torch.random.get_rng_state()
    first, history = fit_rqvae(vectors, seed=3, **values)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    second, again = fit_rqvae(vectors, seed=3, **values)
    assert history == again
    for name, value in first.list_weights().items():
        np.testing.assert_array_equal(second.list_weights()[name], value, err_msg=name)
    _, other = fit_rqvae(vectors, seed=4, **values)
    assert history != other


def write_memmap(vectors: FloatArray, folder: Path) -> FloatArray:
    np.save(folder / "vectors.npy", vectors)
    return np.asanyarray(np.load(folder / "vectors.npy", mmap_mode="r"))


@pytest.mark.parametrize("kind", ["memmap", "shards"])
def test_vectors_on_disk_train_as_those_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = plant_clusters(120, noise=0.3)
    short = {"batch_size": 48, "valid_share": 0.2, "max_epochs": 8, "warmup_epochs": 3}
    held, history = fit_rqvae(vectors, **short)
    monkeypatch.setattr("genrec.tokenizers.quantizers.rqvae_rows.HELD_BYTES", vectors.nbytes - 1)
    mapped = write_memmap(vectors, tmp_path)
    rows = mapped if kind == "memmap" else ShardedVectors([mapped[:50], mapped[50:]])
    streamed = RqVae(write_recipe(**short), 16)
    given = FitInput(tuple(str(row) for row in range(120)), rows)
    assert streamed.fit(given) == history
    for name, value in held.list_weights().items():
        np.testing.assert_array_equal(streamed.list_weights()[name], value, err_msg=name)
    np.testing.assert_array_equal(streamed.encode(given), held.encode(give_vectors(vectors)))


DEGENERATE = {
    "one item": plant_clusters(1),
    "two items": plant_clusters(2),
    "fewer items than codes": plant_clusters(5),
    "fewer distinct items than codes": np.tile(plant_clusters(4), (8, 1)),
    "all the same": np.tile(plant_clusters(1), (40, 1)),
    "all zero": np.zeros((30, 16), dtype=np.float32),
    "narrower than the latent": plant_clusters(40, dimensions=2),
    "tiny": plant_clusters(40) * np.float32(1e-20),
    "huge": plant_clusters(40) * np.float32(1e18),
}


@pytest.mark.parametrize("way", ["default", "LC-Rec"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_vectors_end_in_unique_codes(case: str, way: str) -> None:
    vectors = DEGENERATE[case]
    values = {**WAYS[way], "max_epochs": 4, "warmup_epochs": 1}
    quantizer, history = fit_rqvae(vectors, **values)
    assert all(np.isfinite(list(record.values())).all() for record in history)
    given = give_vectors(vectors)
    codes, latents = quantizer.encode(given), quantizer.project(given)
    unique = assign_unique(codes, quantizer.codebooks, lambda rows: latents[rows]).codes
    assert len(np.unique(unique, axis=0)) == len(vectors)
    assert np.isfinite(quantizer.decode_codes(unique)).all()


def test_weights_move_with_codes_that_learn_by_gradient() -> None:
    vectors = plant_clusters(60)
    quantizer, _ = fit_rqvae(vectors, (8, 4, 2), dropout=0.1, codebook_update="gradient")
    other = RqVae(write_recipe((8, 4, 2), seed=9, dropout=0.1, codebook_update="gradient"), 16)
    given = give_vectors(vectors)
    assert (other.encode(given) != quantizer.encode(given)).any()
    other.restore_weights(quantizer.list_weights())
    np.testing.assert_array_equal(other.encode(given), quantizer.encode(given))
    np.testing.assert_array_equal(other.project(given), quantizer.project(given))
    for book, own in zip(other.codebooks, quantizer.codebooks, strict=True):
        np.testing.assert_array_equal(book, own)
    with pytest.raises(ArtifactError, match="names or shapes differ: decoder"):
        RqVae(write_recipe((8, 4, 2)), 8).restore_weights(quantizer.list_weights())


def test_devices_are_checked_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"rqvae\.device is 'gpu'.* use auto, cpu, cuda"):
        RqVae(write_recipe(device="gpu"), 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    vectors = plant_clusters(30)
    quantizer = RqVae(write_recipe(device="cuda:0"), 16)
    with pytest.raises(RecipeError, match=r"rqvae\.device is 'cuda:0', but torch sees no such GPU"):
        quantizer.fit(give_vectors(vectors))
    # What was fitted on a GPU is used without one.
    fitted, _ = fit_rqvae(vectors)
    quantizer.restore_weights(fitted.list_weights())
    given = give_vectors(vectors)
    np.testing.assert_array_equal(quantizer.encode(given), fitted.encode(given))
    automatic, _ = fit_rqvae(vectors, device="auto")
    np.testing.assert_array_equal(automatic.encode(given), fitted.encode(given))


class ShiftFusion(nn.Module):
    """Adds a learned number of its own to each item."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.Parameter(torch.linspace(-1, 1, 60))

    def number_items(self, given: FitInput) -> IndexArray:
        return np.array([int(item_id.partition("-")[2]) for item_id in given.item_ids])

    def forward(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        return vectors + self.shifts[numbers][:, None]


def test_a_fusion_is_trained_saved_and_knows_items_by_their_number() -> None:
    vectors = np.tile(plant_clusters(1), (60, 1)) + plant_clusters(60, noise=0.01) / 10
    quantizer = RqVae(write_recipe(), 16, make_fusion=ShiftFusion)
    given = give_vectors(vectors)
    before = quantizer.list_weights()["fusion.shifts"].copy()
    quantizer.fit(given)
    assert (quantizer.list_weights()["fusion.shifts"] != before).all()
    codes = quantizer.encode(given)
    some = given.select_items(np.array([50, 4, 33]))
    np.testing.assert_array_equal(quantizer.encode(some), codes[[50, 4, 33]])
    np.testing.assert_allclose(
        quantizer.project(some), quantizer.project(given)[[50, 4, 33]], rtol=0, atol=1e-6
    )

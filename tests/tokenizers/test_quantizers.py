"""What every quantizer must do, and what each does on its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from genrec.errors import ArtifactError, DataError, RecipeError
from genrec.tokenizers.assign import assign_unique
from genrec.tokenizers.quantizer import QUANTIZERS, Quantizer, build_quantizer, check_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray

from .conftest import plant_clusters

QUICK = {"hidden_sizes": [24], "latent_size": 8, "max_epochs": 25, "warmup_epochs": 8}

every_quantizer = pytest.mark.parametrize("name", sorted(QUANTIZERS))


def fit_quantizer(
    name: str, vectors: FloatArray, sizes: tuple[int, ...] = (8, 8, 8), **values: Any
) -> tuple[Quantizer, list[dict[str, float]]]:
    seed = values.pop("seed", 0)
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": name, "codebook_sizes": sizes, "seed": seed, "rqvae": {**QUICK, **values}}
    )
    quantizer = build_quantizer(recipe, vectors.shape[1])
    return quantizer, quantizer.fit_vectors(vectors)


@every_quantizer
def test_planted_clusters_are_found(name: str) -> None:
    vectors = plant_clusters(240, n_clusters=8)
    quantizer, history = fit_quantizer(name, vectors, max_epochs=60)
    codes = quantizer.encode_vectors(vectors)
    assert codes.shape == (240, 3)
    assert codes.dtype == np.int32
    # Pairs of one cluster share their first code much more often than pairs of two.
    cluster = np.arange(240) % 8
    same = cluster[:, None] == cluster[None]
    shared = codes[:, None, 0] == codes[None, :, 0]
    assert shared[same].mean() > 0.7
    assert shared[~same].mean() < 0.1
    assert len(history) > 1


@every_quantizer
def test_reconstruction_beats_the_mean(name: str) -> None:
    vectors = plant_clusters(240)
    quantizer, _ = fit_quantizer(name, vectors, max_epochs=60)
    decoded = quantizer.decode_codes(quantizer.encode_vectors(vectors))
    assert decoded.shape == vectors.shape
    assert decoded.dtype == np.float32
    assert ((vectors - decoded) ** 2).mean() < 0.3 * vectors.var(axis=0).mean()


@every_quantizer
def test_codes_are_the_greedy_nearest_rows(name: str) -> None:
    vectors = plant_clusters(100)
    quantizer, _ = fit_quantizer(name, vectors)
    residual = quantizer.project_vectors(vectors).copy()
    codes = quantizer.encode_vectors(vectors)
    for level, book in enumerate(quantizer.codebooks):
        distances = ((residual[:, None] - book[None]) ** 2).sum(2)
        chosen = distances[np.arange(100), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(1), atol=1e-4)
        residual -= book[codes[:, level]]


@every_quantizer
def test_same_seed_same_codes_and_the_global_generator_is_left_alone(name: str) -> None:
    vectors = plant_clusters(80)
    before = torch.random.get_rng_state()
    first, history = fit_quantizer(name, vectors, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    second, again = fit_quantizer(name, vectors, seed=3)
    np.testing.assert_array_equal(first.encode_vectors(vectors), second.encode_vectors(vectors))
    assert history == again


@every_quantizer
def test_codes_do_not_depend_on_the_batch(name: str) -> None:
    vectors = plant_clusters(60)
    quantizer, _ = fit_quantizer(name, vectors)
    single = np.concatenate([quantizer.encode_vectors(vectors[row : row + 1]) for row in range(60)])
    np.testing.assert_array_equal(quantizer.encode_vectors(vectors), single)


@every_quantizer
def test_weights_move_to_another_instance(name: str) -> None:
    vectors = plant_clusters(60)
    quantizer, _ = fit_quantizer(name, vectors, (8, 4, 2))
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": name, "codebook_sizes": (8, 4, 2), "rqvae": QUICK, "seed": 9}
    )
    other = build_quantizer(recipe, 16)
    other.restore_weights(quantizer.list_weights())
    codes = quantizer.encode_vectors(vectors)
    np.testing.assert_array_equal(other.encode_vectors(vectors), codes)
    np.testing.assert_array_equal(other.decode_codes(codes), quantizer.decode_codes(codes))


@every_quantizer
def test_foreign_weights_are_refused(name: str) -> None:
    recipe = TokenizeRecipe.model_validate({"quantizer": name, "codebook_sizes": (4, 4)})
    quantizer = build_quantizer(recipe, 16)
    wrong_width = build_quantizer(recipe, 8).list_weights()
    for weights in (wrong_width, {"other": np.zeros(1, dtype=np.float32)}):
        with pytest.raises(ArtifactError, match="not those of this"):
            quantizer.restore_weights(weights)


DEGENERATE = {
    "one item": plant_clusters(1),
    "fewer items than codes": plant_clusters(5),
    "fewer distinct items than codes": np.tile(plant_clusters(4), (8, 1)),
    "all the same": np.tile(plant_clusters(1), (40, 1)),
    "all zero": np.zeros((30, 16), dtype=np.float32),
    "narrower than the latent": plant_clusters(40, dimensions=2),
}


@pytest.mark.parametrize(("name", "case"), [*itertools.product(sorted(QUANTIZERS), DEGENERATE)])
def test_degenerate_input_ends_in_unique_codes(name: str, case: str) -> None:
    vectors = DEGENERATE[case]
    quantizer, history = fit_quantizer(name, vectors, max_epochs=6, warmup_epochs=2)
    assert all(np.isfinite(list(record.values())).all() for record in history)
    codes = quantizer.encode_vectors(vectors)
    latents = quantizer.project_vectors(vectors)
    unique = assign_unique(latents, codes, quantizer.codebooks).codes
    assert len(np.unique(unique, axis=0)) == len(vectors)
    assert np.isfinite(quantizer.decode_codes(unique)).all()


@every_quantizer
def test_levels_may_differ_in_size(name: str) -> None:
    vectors = plant_clusters(60)
    quantizer, _ = fit_quantizer(name, vectors, (16, 8, 4), max_epochs=6, warmup_epochs=2)
    assert [len(book) for book in quantizer.codebooks] == [16, 8, 4]
    codes = quantizer.encode_vectors(vectors)
    assert (codes.max(axis=0) < [16, 8, 4]).all()


def test_unknown_quantizers_get_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="unknown quantizer 'rq-vae'; did you mean 'rqvae'"):
        build_quantizer(TokenizeRecipe(quantizer="rq-vae"), 4)


def test_a_quantizer_of_your_own_is_found_by_module() -> None:
    recipe = TokenizeRecipe(quantizer="genrec.tokenizers.rqkmeans:RqKMeans", codebook_sizes=(2,))
    assert build_quantizer(recipe, 4).codebooks[0].shape == (2, 4)


def test_vectors_that_cannot_be_quantized_are_named() -> None:
    vectors = np.zeros((15, 3), dtype=np.float32)
    check_vectors(vectors, "here", 3)
    with pytest.raises(DataError, match="3 dimensions, but the tokenizer was fitted to 4"):
        check_vectors(vectors, "here", 4)
    with pytest.raises(DataError, match=r"one vector an item, but has shape \(0, 3\)"):
        check_vectors(vectors[:0], "here")
    vectors[[2, 5], 1] = np.nan
    with pytest.raises(DataError, match=r"in 2 of 15 rows \(2, 5\)"):
        check_vectors(vectors, "here")
    vectors[:, 0] = np.inf
    with pytest.raises(DataError, match=r"in 15 of 15 rows \(0, 1, .*9, \.\.\.\)"):
        check_vectors(vectors, "here")


def test_training_stops_early_and_keeps_the_best() -> None:
    vectors = plant_clusters(200)
    quantizer, history = fit_quantizer(
        "rqvae", vectors, max_epochs=400, patience_epochs=3, learning_rate=0.01
    )
    assert len(history) < 400
    assert [record["warmup"] for record in history[:9]] == [1.0] * 8 + [0.0]
    quantized = [record["valid_error"] for record in history[8:]]
    # No epoch of the patience at the end was better than the one that was kept.
    assert min(quantized[:-3]) <= min(quantized[-3:]) * 1.001 + 1e-9
    codes = quantizer.encode_vectors(vectors)
    error = ((vectors - quantizer.decode_codes(codes)) ** 2).mean() / vectors.var(axis=0).mean()
    assert error < 2 * min(quantized)


def test_warmup_may_be_left_out() -> None:
    vectors = plant_clusters(60)
    _, history = fit_quantizer("rqvae", vectors, max_epochs=2, warmup_epochs=0)
    assert [record["warmup"] for record in history] == [0.0, 0.0]
    _, history = fit_quantizer("rqvae", vectors, max_epochs=2, warmup_epochs=5)
    assert [record["warmup"] for record in history] == [1.0, 0.0]


def test_codes_are_used_evenly() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)
    quantizer, _ = fit_quantizer("rqvae", vectors, (16, 16), max_epochs=40)
    codes = quantizer.encode_vectors(vectors)
    assert [len(np.unique(codes[:, level])) for level in range(2)] == [16, 16]


def test_residual_kmeans_error_falls_with_each_level() -> None:
    vectors = plant_clusters(200, noise=0.5)
    _, history = fit_quantizer("rqkmeans", vectors)
    errors = [record["error"] for record in history]
    assert errors == sorted(errors, reverse=True)
    assert [record["level"] for record in history] == [0.0, 1.0, 2.0]


def test_balance_spreads_items_of_dense_places_over_codes() -> None:
    dense, loose = plant_clusters(300, noise=0.01), plant_clusters(100, noise=1.0)
    vectors = np.concatenate([dense, loose])
    shared = []
    for balance in (0.0, 2.0):
        recipe = TokenizeRecipe.model_validate(
            {"quantizer": "rqkmeans", "codebook_sizes": (8, 16), "rqkmeans": {"balance": balance}}
        )
        quantizer = build_quantizer(recipe, 16)
        quantizer.fit_vectors(vectors)
        shared.append(len(np.unique(quantizer.encode_vectors(vectors), axis=0)))
    assert shared[1] > shared[0]

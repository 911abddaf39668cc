"""What product codes do beyond the contract: parts, rotations, codes despite rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genrec.errors import RecipeError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.opq import ProductCodes
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray

from .conftest import plant_clusters


def fit(
    vectors: FloatArray, sizes: tuple[int, ...] = (8, 8), **values: Any
) -> tuple[ProductCodes, FitInput, list[dict[str, float]]]:
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "opq", "codebook_sizes": sizes, "opq": values}
    )
    given = FitInput(tuple(map(str, range(len(vectors)))), vectors)
    quantizer = ProductCodes(recipe, vectors.shape[1])
    history = quantizer.fit(given)
    return quantizer, given, history


def measure_error(quantizer: ProductCodes, given: FitInput) -> float:
    decoded = quantizer.decode_codes(quantizer.encode(given))
    return float(((given.rows[:] - decoded) ** 2).mean())


def draw_mixed(n_items: int = 400) -> FloatArray:
    """Vectors whose directions of spread lie across the axes, most of it in two of eight."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(8, 8)))[0]
    spread = np.array([4, 4, 1, 1, 0.1, 0.1, 0.1, 0.1])
    return (random.normal(size=(n_items, 8)) * spread @ turn).astype(np.float32)


def test_more_levels_than_dimensions_are_refused_at_once() -> None:
    recipe = TokenizeRecipe(quantizer="opq", codebook_sizes=(4, 4, 4))
    with pytest.raises(RecipeError, match=r"has 3 levels and the vectors have 2 dimensions; use"):
        ProductCodes(recipe, 2)


@pytest.mark.parametrize("rotation", ["opq", "pca", "none"])
def test_parts_cover_all_dimensions_also_where_they_do_not_divide(rotation: str) -> None:
    quantizer, given, _ = fit(plant_clusters(60, dimensions=11), (8, 4, 2), rotation=rotation)
    held = np.stack([(book != 0).any(axis=0) for book in quantizer.codebooks])
    assert held.shape == (3, 11)
    assert (held.sum(axis=0) == 1).all()
    assert sorted(held.sum(axis=1).tolist()) == [3, 4, 4]
    assert quantizer.encode(given).max(axis=0).tolist() <= [7, 3, 1]


@pytest.mark.parametrize("rotation", ["opq", "pca", "none"])
def test_a_rotation_keeps_lengths_and_decoding_turns_back(rotation: str) -> None:
    quantizer, given, _ = fit(draw_mixed(), rotation=rotation)
    turn = quantizer.list_weights()["rotation"]
    np.testing.assert_allclose(turn.T @ turn, np.eye(8), atol=1e-5)
    latents, codes = quantizer.project(given), quantizer.encode(given)
    total = sum(book[codes[:, level]] for level, book in enumerate(quantizer.codebooks))
    np.testing.assert_allclose(
        ((latents - total) ** 2).mean(), measure_error(quantizer, given), rtol=1e-4
    )
    np.testing.assert_allclose(quantizer.decode_codes(codes), total @ turn.T, atol=1e-5)
    assert (rotation == "none") == np.array_equal(turn, np.eye(8))


def test_a_learned_rotation_loses_least() -> None:
    errors = {}
    for rotation in ("opq", "pca", "none"):
        quantizer, given, history = fit(draw_mixed(), (16, 16), rotation=rotation)
        errors[rotation] = measure_error(quantizer, given)
        assert history[-1]["error"] == pytest.approx(errors[rotation], rel=1e-3)
    assert errors["opq"] < 1.02 * errors["pca"]
    assert errors["opq"] < errors["none"]


def test_axes_are_dealt_out_so_that_parts_weigh_the_same() -> None:
    quantizer, given, _ = fit(draw_mixed(2000), rotation="pca")
    variances = quantizer.project(given).var(axis=0)
    products = [variances[:4].prod(), variances[4:].prod()]
    assert 0.3 < products[0] / products[1] < 3
    assert np.argmax(variances) // 4 != np.argsort(variances)[-2] // 4


def test_codes_of_vectors_between_centres_do_not_depend_on_the_batch() -> None:
    quantizer, _, _ = fit(plant_clusters(80, dimensions=64), rotation_iterations=3)
    pairs = np.random.default_rng(0).integers(0, 8, (2, 200, 2))
    ends = [quantizer.decode_codes(codes.astype(np.int32)) for codes in pairs]
    midway = ((ends[0] + ends[1]) / 2).astype(np.float32)
    given = FitInput(tuple(map(str, range(200))), midway)
    together = quantizer.encode(given)
    for size in (1, 7):
        rows = [np.arange(start, min(start + size, 200)) for start in range(0, 200, size)]
        parts = [quantizer.encode(given.select_items(part)) for part in rows]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_a_sample_is_enough() -> None:
    quantizer, given, _ = fit(draw_mixed(), sample_items=100)
    assert measure_error(quantizer, given) < 0.5 * float(given.rows[:].var(axis=0).mean())

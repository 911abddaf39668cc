"""What product codes do beyond the contract: parts, rotations, codes despite rounding."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

from genrec.errors import ArtifactError, RecipeError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers import opq
from genrec.tokenizers.quantizers.opq import ProductCodes
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.vectors import read_chunks
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


def draw_product(n_items: int = 300) -> FloatArray:
    """Vectors whose halves are clustered each by itself, along the axes as they are."""
    random = np.random.default_rng(0)
    codes, centres = random.integers(0, 8, (2, n_items)), random.normal(size=(2, 8, 4))
    halves = np.concatenate([centres[0][codes[0]], centres[1][codes[1]]], axis=1)
    return (halves + 0.01 * random.normal(size=(n_items, 8))).astype(np.float32)


@pytest.mark.parametrize(
    ("vectors", "start"), [(draw_product(), 1.0), (plant_clusters(120, noise=0.3), 0.0)]
)
def test_the_better_of_two_starts_is_kept(vectors: FloatArray, start: float) -> None:
    quantizer, given, history = fit(vectors, rotation="opq")
    assert {record["start"] for record in history} == {start}
    assert [record["round"] for record in history] == list(range(21))
    errors = [record["error"] for record in history[:-1]]  # the last is a k-means of its own
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(errors))
    learned = measure_error(quantizer, given)
    assert learned == pytest.approx(history[-1]["error"], rel=1e-3)
    others = [measure_error(*fit(vectors, rotation=name)[:2]) for name in ("pca", "none")]
    assert learned <= min(others) + 1e-6


def test_of_equally_good_starts_the_first_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opq, "_deal_axes", lambda rows, parts: np.eye(8, dtype=np.float32))
    _, _, history = fit(draw_mixed(100), rotation="opq", rotation_iterations=2)
    assert {record["start"] for record in history} == {0.0}


def test_a_long_part_does_not_make_codes_of_a_short_one_depend_on_the_batch() -> None:
    # Rounding grows with the whole vector, however little of it falls into the part.
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(64, 64)))[0].astype(np.float32)
    centres = random.normal(size=(2, 8, 32)).astype(np.float32)
    recipe = TokenizeRecipe(quantizer="opq", codebook_sizes=(8, 8))
    quantizer = ProductCodes(recipe, 64)
    quantizer.restore_weights({"rotation": turn, "centres.0": centres[0], "centres.1": centres[1]})
    pairs = random.integers(0, 8, (2, 300))
    midway = (centres[1][pairs[0]] + centres[1][pairs[1]]) / 2
    rotated = np.concatenate([1e4 * random.normal(size=(300, 32)), midway], axis=1)
    vectors = (rotated @ turn.T.astype(np.float64)).astype(np.float32)
    given = FitInput(tuple(map(str, range(300))), vectors)
    single = [quantizer.encode(given.select_items(np.array([row]))) for row in range(300)]
    np.testing.assert_array_equal(np.concatenate(single), quantizer.encode(given))


def test_chunks_that_are_read_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, given, _ = fit(draw_mixed(50), rotation_iterations=2)
    whole = quantizer.encode(given)
    monkeypatch.setattr(opq, "read_chunks", partial(read_chunks, rows=7))
    np.testing.assert_array_equal(quantizer.encode(given), whole)


@pytest.mark.parametrize("rotation", ["opq", "pca", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_vectors_without_variance_are_kept_exactly(rotation: str, value: float) -> None:
    vectors = np.full((30, 6), value, dtype=np.float32)
    quantizer, given, history = fit(vectors, rotation=rotation)
    turn = quantizer.list_weights()["rotation"]
    np.testing.assert_allclose(turn.T @ turn, np.eye(6), atol=1e-5)
    assert history[-1]["error"] == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(quantizer.decode_codes(quantizer.encode(given)), value, atol=1e-5)


def test_each_level_can_have_a_single_dimension() -> None:
    vectors = plant_clusters(40, dimensions=3)
    quantizer, given, _ = fit(vectors, (4, 4, 4), rotation_iterations=2)
    assert [centres.shape for centres in quantizer.codebooks] == [(4, 3)] * 3
    assert measure_error(quantizer, given) < float(vectors.var(axis=0).mean())


def test_the_same_seed_gives_the_same_fit() -> None:
    one, _, first = fit(draw_mixed(120), sample_items=80, rotation_iterations=2)
    two, _, second = fit(draw_mixed(120), sample_items=80, rotation_iterations=2)
    assert first == second
    for name, value in one.list_weights().items():
        np.testing.assert_array_equal(two.list_weights()[name], value)


def test_what_is_restored_codes_as_what_was_fitted() -> None:
    quantizer, given, _ = fit(plant_clusters(60, dimensions=7), (8, 4), rotation_iterations=2)
    recipe = TokenizeRecipe(quantizer="opq", codebook_sizes=(8, 4))
    other = ProductCodes(recipe, 7)
    assert other.codebook_sizes == (8, 4)
    other.restore_weights(quantizer.list_weights())
    codes = quantizer.encode(given)
    np.testing.assert_array_equal(other.encode(given), codes)
    np.testing.assert_array_equal(other.project(given), quantizer.project(given))
    np.testing.assert_array_equal(other.decode_codes(codes), quantizer.decode_codes(codes))


def test_weights_of_another_shape_or_name_are_refused() -> None:
    quantizer, _, _ = fit(plant_clusters(40, dimensions=6), rotation="pca")
    weights = quantizer.list_weights()
    recipe = TokenizeRecipe(quantizer="opq", codebook_sizes=(8, 8))
    with pytest.raises(ArtifactError, match=r"\(6, 6\).*not those of this opq: .*\(8, 8\)"):
        ProductCodes(recipe, 8).restore_weights(weights)
    missing = {name: value for name, value in weights.items() if name != "centres.1"}
    before = quantizer.list_weights()
    with pytest.raises(ArtifactError, match="not those of this opq"):
        quantizer.restore_weights(missing)
    np.testing.assert_array_equal(quantizer.list_weights()["rotation"], before["rotation"])

"""What residual k-means does beyond the contract: samples, equal sizes, and the last fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from genrec.errors import ArtifactError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers import rqkmeans
from genrec.tokenizers.quantizers.rqkmeans import RqKMeans
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.vectors import read_chunks
from genrec.types import FloatArray

from .conftest import plant_clusters


def fit(
    vectors: FloatArray, sizes: tuple[int, ...] = (8, 8), **values: Any
) -> tuple[RqKMeans, FitInput, list[dict[str, float]]]:
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "rqkmeans", "codebook_sizes": sizes, "rqkmeans": values}
    )
    given = FitInput(tuple(map(str, range(len(vectors)))), vectors)
    quantizer = RqKMeans(recipe, vectors.shape[1])
    history = quantizer.fit(given)
    return quantizer, given, history


def measure_error(quantizer: RqKMeans, given: FitInput) -> float:
    decoded = quantizer.decode_codes(quantizer.encode(given))
    return float(((given.rows[:] - decoded) ** 2).mean())


def test_without_prices_each_code_is_the_nearest_to_what_is_left() -> None:
    quantizer, given, _ = fit(plant_clusters(100, noise=0.4))
    residual = given.rows[:].astype(np.float64)
    codes = quantizer.encode(given)
    for level, book in enumerate(quantizer.codebooks):
        distances = ((residual[:, None] - book[None]) ** 2).sum(2)
        np.testing.assert_allclose(
            distances[np.arange(100), codes[:, level]], distances.min(1), atol=1e-5
        )
        residual -= book[codes[:, level]]


def test_refinement_lowers_the_error_and_the_history_tells_it() -> None:
    vectors = plant_clusters(300, noise=0.8)
    plain, given, before = fit(vectors, refine_rounds=0)
    refined, _, after = fit(vectors, refine_rounds=5)
    assert measure_error(refined, given) < 0.99 * measure_error(plain, given)
    assert after[: len(before)] == before
    errors = [record["error"] for record in after]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(measure_error(refined, given), rel=1e-4)


def test_refinement_stops_where_nothing_is_left_to_gain() -> None:
    vectors = np.tile(plant_clusters(4), (5, 1))
    quantizer, given, history = fit(vectors, refine_rounds=50)
    assert len(history) < 10
    assert measure_error(quantizer, given) < 1e-10


def test_centres_are_fitted_to_a_sample_and_all_items_get_codes() -> None:
    vectors = plant_clusters(400)
    quantizer, given, _ = fit(vectors, sample_items=80)
    whole, _, _ = fit(vectors)
    assert quantizer.encode(given).shape == (400, 2)
    assert (quantizer.codebooks[0] != whole.codebooks[0]).any()
    assert measure_error(quantizer, given) < 0.3 * float(vectors.var(axis=0).mean())


def test_equal_sizes_spread_items_over_codes_much_more_evenly() -> None:
    crowd, rest = plant_clusters(240, 2, noise=0.3), plant_clusters(80, 8, noise=0.5, seed=1)
    vectors = np.concatenate([crowd, rest])
    spreads = []
    for equal in (False, True):
        quantizer, given, history = fit(vectors, equal_sizes=equal)
        codes = quantizer.encode(given)
        spreads.append([np.bincount(column, minlength=8).std() for column in codes.T])
    assert (np.array(spreads[1]) < 0.4 * np.array(spreads[0])).all()
    assert all("refinement" not in record for record in history)


def test_prices_are_kept_with_the_codebooks() -> None:
    vectors = plant_clusters(90, noise=0.6)
    quantizer, given, _ = fit(vectors, equal_sizes=True)
    weights = quantizer.list_weights()
    assert sorted(weights) == ["codebooks.0", "codebooks.1", "prices.0", "prices.1"]
    assert any(weights[f"prices.{level}"].any() for level in range(2))
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "rqkmeans", "codebook_sizes": (8, 8), "rqkmeans": {"equal_sizes": True}}
    )
    other = RqKMeans(recipe, 16)
    other.restore_weights(weights)
    np.testing.assert_array_equal(other.encode(given), quantizer.encode(given))
    plain = RqKMeans(recipe.model_copy(update={"rqkmeans": TokenizeRecipe().rqkmeans}), 16)
    with pytest.raises(ArtifactError, match=r"prices\.0.*not those of this rqkmeans"):
        plain.restore_weights(weights)


def test_equal_sizes_of_too_few_distinct_items_are_plain_centres() -> None:
    quantizer, given, _ = fit(np.tile(plant_clusters(3), (10, 1)), equal_sizes=True)
    assert measure_error(quantizer, given) < 1e-10
    assert not any(quantizer.list_weights()[f"prices.{level}"].any() for level in range(2))


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_equal_sizes_code_fitted_items_nearly_evenly(noise: float) -> None:
    quantizer, given, _ = fit(plant_clusters(160, 5, noise=noise), equal_sizes=True)
    counts = [np.bincount(column, minlength=8) for column in quantizer.encode(given).T]
    assert np.abs(np.array(counts) - 20).max() <= 4


def test_new_items_go_where_distance_plus_price_is_least() -> None:
    vectors = np.concatenate([plant_clusters(120, 2, noise=0.4), plant_clusters(40, noise=0.5)])
    quantizer, _, _ = fit(vectors, equal_sizes=True)
    new = plant_clusters(80, 2, noise=0.6, seed=5)
    given = FitInput(tuple(map(str, range(80))), new)
    codes = quantizer.encode(given)
    weights, residual = quantizer.list_weights(), new.copy()
    for level, book in enumerate(quantizer.codebooks):
        gaps = residual[:, None].astype(np.float64) - book[None]
        costs = (gaps**2).sum(2) + weights[f"prices.{level}"]
        np.testing.assert_array_equal(codes[:, level], costs.argmin(1))
        residual -= book[codes[:, level]]
    np.testing.assert_array_equal(quantizer.project(given), new)


def test_equal_sizes_set_balance_and_refinement_aside() -> None:
    vectors = plant_clusters(90, noise=0.6)
    one, _, first = fit(vectors, equal_sizes=True, balance=0.0, refine_rounds=0)
    two, _, second = fit(vectors, equal_sizes=True, balance=2.0, refine_rounds=5)
    assert first == second
    for name, value in one.list_weights().items():
        np.testing.assert_array_equal(two.list_weights()[name], value)


def test_a_sample_is_seeded() -> None:
    vectors = plant_clusters(100, noise=0.5)
    one, _, _ = fit(vectors, sample_items=40)
    two, _, _ = fit(vectors, sample_items=40)
    for book, same in zip(one.codebooks, two.codebooks, strict=True):
        np.testing.assert_array_equal(book, same)


def test_what_is_restored_codes_as_what_was_fitted_and_other_weights_are_refused() -> None:
    quantizer, given, _ = fit(plant_clusters(60), (8, 4))
    recipe = TokenizeRecipe(quantizer="rqkmeans", codebook_sizes=(8, 4))
    other = RqKMeans(recipe, 16)
    assert other.codebook_sizes == (8, 4)
    weights = quantizer.list_weights()
    other.restore_weights(weights)
    np.testing.assert_array_equal(other.encode(given), quantizer.encode(given))
    with pytest.raises(ArtifactError, match=r"\(8, 16\).*not those of this rqkmeans: .*\(8, 9\)"):
        RqKMeans(recipe, 9).restore_weights(weights)
    even = recipe.model_copy(
        update={"rqkmeans": recipe.rqkmeans.model_copy(update={"equal_sizes": True})}
    )
    with pytest.raises(ArtifactError, match=r"not those of this rqkmeans: .*prices\.0"):
        RqKMeans(even, 16).restore_weights(weights)


def test_chunks_that_are_read_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, given, _ = fit(plant_clusters(50, noise=0.6), equal_sizes=True)
    whole = quantizer.encode(given)
    monkeypatch.setattr(rqkmeans, "read_chunks", partial(read_chunks, rows=7))
    np.testing.assert_array_equal(quantizer.encode(given), whole)

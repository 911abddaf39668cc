"""What is named as a quantizer, which vectors it takes, and what is special to residual k-means.

What every quantizer must do is in `test_contract.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genrec.errors import DataError, RecipeError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import Quantizer, build_quantizer, check_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray

from .conftest import plant_clusters


def give_vectors(vectors: FloatArray) -> FitInput:
    return FitInput(tuple(f"item-{row}" for row in range(len(vectors))), vectors)


def fit_rqkmeans(
    vectors: FloatArray, sizes: tuple[int, ...], **values: Any
) -> tuple[Quantizer, list[dict[str, float]]]:
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "rqkmeans", "codebook_sizes": sizes, "rqkmeans": values}
    )
    quantizer = build_quantizer(recipe, vectors.shape[1])
    return quantizer, quantizer.fit(give_vectors(vectors))


def test_unknown_quantizers_get_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="unknown quantizer 'rq-vae'; did you mean 'rqvae'"):
        build_quantizer(TokenizeRecipe(quantizer="rq-vae"), 4)


def test_a_quantizer_of_your_own_is_found_by_module() -> None:
    recipe = TokenizeRecipe(
        quantizer="genrec.tokenizers.quantizers.rqkmeans:RqKMeans", codebook_sizes=(2,)
    )
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


def test_residual_kmeans_error_falls_with_each_level() -> None:
    _, history = fit_rqkmeans(plant_clusters(200, noise=0.5), (8, 8, 8), refine_rounds=0)
    errors = [record["error"] for record in history]
    assert errors == sorted(errors, reverse=True)
    assert [record["level"] for record in history] == [0.0, 1.0, 2.0]


def test_balance_spreads_items_of_dense_places_over_codes() -> None:
    dense, loose = plant_clusters(300, noise=0.01), plant_clusters(100, noise=1.0)
    vectors = np.concatenate([dense, loose])
    shared = []
    for balance in (0.0, 2.0):
        quantizer, _ = fit_rqkmeans(vectors, (8, 16), balance=balance, refine_rounds=0)
        codes = quantizer.encode(give_vectors(vectors))
        shared.append(len(np.unique(codes, axis=0)))
    assert shared[1] > shared[0]

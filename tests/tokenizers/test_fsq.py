"""Grids instead of codebooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import FSQ

from genrec.errors import RecipeError
from genrec.tokenizers.quantizers.fsq import GridCodes
from genrec.tokenizers.quantizers.quantizer import build_quantizer
from genrec.tokenizers.quantizers.rqvae_codes import find_codes
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import assign_unique

from .conftest import plant_clusters
from .test_quantizers import give_vectors


def write_recipe(grid: tuple[int, ...], sizes: tuple[int, ...], **values: Any) -> TokenizeRecipe:
    quick = {"hidden_sizes": [24], "max_epochs": 40, "learning_rate": 0.01, "batch_size": 64}
    return TokenizeRecipe.model_validate(
        {
            "quantizer": "fsq",
            "codebook_sizes": sizes,
            "fsq": {"grid": grid},
            "rqvae": {**quick, **values},
        }
    )


@pytest.mark.parametrize("grid", [(2,), (3,), (8, 8, 4), (2, 3, 5)])
def test_codes_are_those_of_the_library(grid: tuple[int, ...]) -> None:
    n_cells = int(np.prod(grid))
    codes = GridCodes(write_recipe(grid, (n_cells,) * 3))
    outputs = torch.randn(500, codes.width, generator=torch.Generator().manual_seed(0)) * 2
    library = FSQ(list(grid), num_codebooks=3, preserve_symmetry=True)
    expected_values, expected = library(outputs[None])
    latents = codes.bound_latents(outputs)
    quantized = codes(latents)
    assert torch.equal(quantized.codes, expected[0].long())
    torch.testing.assert_close(quantized.values, expected_values[0])
    assert quantized.loss == 0


def test_codebooks_add_up_and_the_nearest_rows_are_the_cells() -> None:
    codes = GridCodes(write_recipe((4, 3, 2), (24, 24)))
    latents = codes.bound_latents(torch.randn(300, 6, generator=torch.Generator().manual_seed(1)))
    quantized = codes(latents)
    books = codes.list_codebooks()
    assert [tuple(book.shape) for book in books] == [(24, 6), (24, 6)]
    assert torch.equal(find_codes(latents, books), quantized.codes)
    total = sum(book[quantized.codes[:, level]] for level, book in enumerate(books))
    torch.testing.assert_close(total, quantized.values)
    # Each level is the same cells in a part of its own.
    assert torch.equal(books[0][:, :3], books[1][:, 3:])
    assert not books[0][:, 3:].any()
    assert not books[1][:, :3].any()


def test_gradients_pass_the_grid() -> None:
    codes = GridCodes(write_recipe((4, 4), (16,)))
    latents = torch.zeros(5, 2, requires_grad=True)
    torch.autograd.backward(codes(latents).values.sum())
    assert torch.equal(latents.grad, torch.ones(5, 2))


def test_it_learns_to_tell_clusters_apart() -> None:
    vectors = plant_clusters(240, n_clusters=12, noise=0.02)
    given = give_vectors(vectors)
    quantizer = build_quantizer(write_recipe((4, 4), (16, 16)), 16)
    history = quantizer.fit(given)
    codes = quantizer.encode(given)
    decoded = quantizer.decode_codes(codes)
    assert ((vectors - decoded) ** 2).mean() < 0.3 * vectors.var(axis=0).mean()
    assert history[-1]["valid_error"] < history[0]["valid_error"]
    latents = quantizer.project(given)
    assert np.abs(latents).max() <= 1
    unique = assign_unique(codes, quantizer.codebooks, lambda rows: latents[rows])
    assert len(np.unique(unique.codes, axis=0)) == 240


@pytest.mark.parametrize(
    ("sizes", "shown"), [((16, 16, 8), r"\[16, 16, 8\]"), ((256,), r"\[256\]")]
)
def test_sizes_that_are_not_the_grids_are_refused(sizes: tuple[int, ...], shown: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"codebook_sizes are {shown}, but fsq.grid 4 x 4 has 16.*\[16"
    ):
        build_quantizer(write_recipe((4, 4), sizes), 8)

"""Finite scalar quantization: a level's codes are the cells of a fixed grid.

Owns the grids and their place in the latent. Knows neither the network around them nor its
training, which are those of RQ-VAE.

Source: FSQ (Mentzer et al. 2023), with the symmetric grid of Stable Codec (Parker et al. 2024,
section 3.2), which also has room for two steps an axis; both as in vector-quantize-pytorch. Each
level is a grid of its own over its own part of the latent, so that levels have no order. No layers
stand between latent and grid: linear ones would add nothing to the encoder's and decoder's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from genrec.errors import RecipeError
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.quantizers.rqvae_network import Quantized
from genrec.tokenizers.recipe import TokenizeRecipe


class GridCodes(nn.Module):
    """One grid a level, side by side in the latent."""

    def __init__(self, recipe: TokenizeRecipe) -> None:
        """Grids with nothing to learn.

        Raises:
            RecipeError: codebook sizes that are not the number of the grid's cells.
        """
        super().__init__()
        grid = recipe.fsq.grid
        n_cells = math.prod(grid)
        if any(size != n_cells for size in recipe.codebook_sizes):
            steps = " x ".join(str(step) for step in grid)
            raise RecipeError(
                f"codebook_sizes are {list(recipe.codebook_sizes)}, but fsq.grid {steps} has "
                f"{n_cells:,} cells, and each level's codes are its cells; set codebook_sizes to "
                f"{[n_cells] * len(recipe.codebook_sizes)}, or change the grid"
            )
        n_levels = len(recipe.codebook_sizes)
        self.width = len(grid) * n_levels
        self._library = FSQ(
            levels=list(grid),
            num_codebooks=n_levels,
            keep_num_codebooks_dim=True,
            preserve_symmetry=True,
            bound_hard_clamp=True,  # latents are bounded before
        )

    def bound_latents(self, outputs: Tensor) -> Tensor:
        """The outputs between -1 and 1, where the grid lies."""
        return torch.tanh(outputs)

    def forward(self, latents: Tensor) -> Quantized:
        """The nearest cells; gradients pass straight through, and no loss is needed."""
        values, codes = self._library(latents[None])
        return Quantized(values[0], codes[0].long(), latents.new_zeros(()))

    def list_codebooks(self) -> list[Tensor]:
        """Each level's cells (K, d): the grid in the level's own part of the latent, else zero."""
        cells = self._library.implicit_codebook
        n_cells, n_axes = cells.shape
        books = []
        for level in range(self._library.num_codebooks):
            book = cells.new_zeros(n_cells, self.width)
            book[:, level * n_axes : (level + 1) * n_axes] = cells
            books.append(book)
        return books

    def place_codes(self, latents: Tensor, batch_size: int) -> None:
        """Nothing: the grid stands still."""


def make_fsq(recipe: TokenizeRecipe, dimensions: int) -> RqVae:
    """The quantizer `fsq`: the network and schedule of section `rqvae` around grids.

    Raises:
        RecipeError: codebook sizes that do not fit the grid.
    """
    return RqVae(recipe, dimensions, make_codes=GridCodes)

"""Residual codes: each level quantizes what the levels before it left over.

Owns how codes are placed, chosen, moved and revived in training, all by vector-quantize-pytorch,
and the loss between latents and codes. Knows neither encoder nor decoder.

Source: the loss is that of LC-Rec (Zheng et al. 2024, equations 3 and 4) with the mean over levels
that its code takes; its paper and TIGER (Rajput et al. 2023, section 3.1) write a sum. Deviations
from its code: at every level the pull reaches the encoder, as the papers have it (the code's
residuals carry no gradient after the first level), and vectors' errors are means over their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ
from vector_quantize_pytorch.vector_quantize_pytorch import gumbel_sample, rotate_to

from genrec.tokenizers.quantizers.rqvae_network import Quantized
from genrec.tokenizers.quantizers.sinkhorn import spread_evenly
from genrec.tokenizers.recipe import TokenizeRecipe

_JITTER = 1e-4
_TIE = 1e-9


class ResidualCodes(nn.Module):
    """The codebooks of a residual quantizer."""

    def __init__(self, recipe: TokenizeRecipe) -> None:
        """Codebooks of zeros until k-means places them, or random ones."""
        super().__init__()
        self._values = values = recipe.rqvae
        self.library = ResidualVQ(
            dim=values.latent_size,
            codebook_size=recipe.codebook_sizes,
            kmeans_init=values.codebook_init == "kmeans",
            kmeans_iters=values.kmeans_iterations,
            decay=values.codebook_decay,
            ema_update=values.codebook_update == "ema",
            learnable_codebook=values.codebook_update == "gradient",
            threshold_ema_dead_code=values.dead_code_share,
            quantize_dropout=values.quantize_dropout,
            commitment_weight=0.0,  # the loss and the gradients' way are below
            route_gradients_to_input=False,
            rotation_trick=False,
        )
        if values.sinkhorn_epsilon:
            last: Any = self.library.layers[-1]
            last._codebook.gumbel_sample = self._choose_evenly

    @property
    def width(self) -> int:
        """The recipe's latent size."""
        return self._values.latent_size

    def bound_latents(self, outputs: Tensor) -> Tensor:
        """The outputs themselves: codes go wherever latents are."""
        return outputs

    def list_codebooks(self) -> list[Tensor]:
        """One codebook (K, d) a level."""
        return [layer.codebook for layer in self.library.layers]

    def forward(self, latents: Tensor) -> Quantized:
        """The latents' codes, their sum, and the loss between both."""
        books = [book.clone() for book in self.list_codebooks()]  # the library moves them at once
        codes = self.library(latents[None])[1][0]
        total, loss = torch.zeros_like(latents), latents.new_zeros(())
        for level, book in enumerate(books):
            if self._values.quantize_dropout and int(codes[0, level]) < 0:
                break
            chosen, residual = book[codes[:, level]], latents - total
            loss = loss + self._values.commitment * functional.mse_loss(residual, chosen.detach())
            if self._values.codebook_update == "gradient":
                loss = loss + functional.mse_loss(chosen, residual.detach())
            total = total + chosen.detach()
        if self._values.rotation_trick:
            values = rotate_to(latents, total)
        else:
            values = latents + (total - latents).detach()
        return Quantized(values, codes, loss / len(books))

    def place_codes(self, latents: Tensor, batch_size: int) -> None:
        """Let k-means place the codes, unless they start at random, and set when they are dead.

        Fewer items than codes are repeated with a little noise: k-means needs one row a code.
        """
        widest = max(len(book) for book in self.list_codebooks())
        if len(latents) < widest:
            latents = latents.repeat(-(-widest // len(latents)), 1)
            spread = latents.std().nan_to_num() + _JITTER
            latents = latents + torch.randn_like(latents) * spread * _JITTER
        residual = latents
        for layer in self.library.layers:
            placed: Any = layer._codebook
            placed.init_embed_(residual[None])
            residual = residual - layer.codebook[find_codes(residual, [layer.codebook])[:, 0]]
            # The share of an even use fits any size; the library counts items of a batch.
            placed.threshold_ema_dead_code = placed.reset_cluster_size = (
                self._values.dead_code_share * batch_size / layer.codebook_size
            )

    def _choose_evenly(self, closeness: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Codes by an even spread of the batch while training, else the nearest.

        Takes the place of the library's choice on the last level.

        Shapes:
            closeness: (1, n, K), the negative distances; returns (1, n) codes and their one-hot.
        """
        if self.training:
            values = self._values
            squares = closeness[0].square()
            closeness = spread_evenly(squares, values.sinkhorn_epsilon, values.sinkhorn_iterations)[
                None
            ]
        chosen: tuple[Tensor, Tensor] = gumbel_sample(closeness, **options)
        return chosen


def find_codes(latents: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """At each level the code (n, L) nearest to what is left; of equally near ones the first.

    What is as near but for rounding counts as equally near, so that an item's codes in float64 do
    not depend on the items beside it, whose number changes the order of sums in matrix products.
    """
    residual = latents
    codes = []
    for book in codebooks:
        squares = book.square().sum(1)
        distances = torch.addmm(squares[None], residual, book.T, alpha=-2)
        slack = (residual.square().sum(1, keepdim=True) + squares.max()) * _TIE
        near = distances <= distances.amin(1, keepdim=True) + slack
        codes.append(near.to(torch.uint8).argmax(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, dim=1)

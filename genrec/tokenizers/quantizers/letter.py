"""LETTER: an RQ-VAE whose codes agree with who chooses what, and are used evenly.

Owns LETTER's two further losses. Knows neither the network nor where factors come from.

Source: Wang et al. 2024, "Learnable item tokenization for generative recommendation", and its code
(github.com/HonghuiBao2000/LETTER). The collaborative loss is a cross-entropy over the batch: among
all items' factors, those of the same item must have the largest product with the quantized latent.
The diversity loss is a cross-entropy over the codebook: among all other codes, one that is drawn
from the same cluster must have the largest product with the item's code. As in the code, products
are plain, without a temperature.

Deviations: the factors are scaled as a whole to a mean length of 1, so that the cross-entropy,
whose sharpness their length sets, starts near the logarithm of the batch size whatever made them.
Clusters are of equal size, where LETTER bounds their sizes (10 to 60 of 256 codes) with the package
k-means-constrained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec.errors import DataError
from genrec.tokenizers.inputs import DATA, VECTORS, FitInput
from genrec.tokenizers.quantizers.balanced import fit_even_centres
from genrec.tokenizers.quantizers.item_factors import factorise_interactions, read_factors
from genrec.tokenizers.quantizers.kmeans import KMeansPlan
from genrec.tokenizers.quantizers.losses import AuxiliaryLoss, TrainBatch
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray, IndexArray

_KMEANS_ITERATIONS = 10
_FEWEST_TO_SHARE = 2
_log = logging.getLogger(__name__)


def find_letter_needs(recipe: TokenizeRecipe) -> frozenset[str]:
    """Vectors; and data, where factors are not given but made from the interactions."""
    if recipe.letter.factors is None and recipe.letter.alignment > 0:
        return frozenset({VECTORS, DATA})
    return frozenset({VECTORS})


def build_letter(recipe: TokenizeRecipe, dimensions: int) -> RqVae:
    """An RQ-VAE that trains with LETTER's losses; it encodes from vectors alone."""
    return RqVae(recipe, dimensions, make_losses=make_letter_losses)


def make_letter_losses(
    recipe: TokenizeRecipe, given: FitInput, latent_size: int
) -> list[AuxiliaryLoss]:
    """The losses of one training run whose weight is not 0.

    Raises:
        DataError: unusable factors, or no training interaction to make them from.
    """
    values = recipe.letter
    losses: list[AuxiliaryLoss] = []
    if values.alignment > 0:
        factors = _find_factors(recipe, given)
        losses.append(AlignmentLoss(factors, latent_size, values.alignment))
    if values.diversity > 0:
        if recipe.rqvae.codebook_update == "ema":
            _log.info(
                "letter: the diversity loss moves codebooks by its gradient, and has no effect "
                "with rqvae.codebook_update=ema; set it to gradient, or letter.diversity to 0"
            )
        else:
            losses.append(DiversityLoss(values.clusters, values.diversity))
    return losses


def _find_factors(recipe: TokenizeRecipe, given: FitInput) -> FloatArray:
    values = recipe.letter
    if values.factors is not None:
        return read_factors(Path(values.factors), given)
    if given.subject != "items":
        raise DataError(
            f"letter makes factors of items, but these embeddings hold {given.subject}; give "
            f"letter.factors for them, or use the recipe rqvae or ulmrec-users"
        )
    return factorise_interactions(given, values.factor_dimensions, recipe.seed)


class AlignmentLoss:
    """The collaborative loss: quantized latents tell the items' factors apart.

    Items whose factors are unknown (NaN) are left out of the batch, as anchors and as negatives.
    """

    def __init__(self, factors: FloatArray, latent_size: int, weight: float) -> None:
        """Scale the factors (N, F); a learned linear map is added where F is not d."""
        self._weight = weight
        self._known = torch.from_numpy(np.isfinite(factors).all(axis=1))
        scale = np.linalg.norm(factors[self._known.numpy()], axis=1).mean()
        self._factors = torch.from_numpy(np.nan_to_num(factors / (scale if scale > 0 else 1.0)))
        width = factors.shape[1]
        self._map = None if width == latent_size else nn.Linear(width, latent_size, bias=False)

    def parameters(self) -> Iterable[nn.Parameter]:
        """The linear map's, if there is one."""
        return () if self._map is None else self._map.parameters()

    def start_epoch(self, codebooks: Sequence[Tensor]) -> None:
        """Nothing."""

    def measure(self, batch: TrainBatch) -> Tensor:
        """The weighted cross-entropy over the batch's items whose factors are known."""
        rows = batch.rows.cpu()
        known = self._known[rows]
        quantized = batch.quantized[known.to(batch.quantized.device)]
        if len(quantized) < _FEWEST_TO_SHARE:
            return batch.quantized.new_zeros(())
        factors = self._factors[rows[known]].to(quantized.device)
        if self._map is not None:
            factors = self._map(factors)
        products = quantized @ factors.T
        own = torch.arange(len(products), device=products.device)
        return self._weight * functional.cross_entropy(products, own)


class DiversityLoss:
    """The diversity loss: codes of one cluster are near each other, and clusters apart."""

    def __init__(self, clusters: int, weight: float) -> None:
        """Clusters of each codebook are found anew each epoch."""
        self._clusters = clusters
        self._weight = weight
        self._mates: list[Tensor] = []

    def parameters(self) -> Iterable[nn.Parameter]:
        """None."""
        return ()

    def start_epoch(self, codebooks: Sequence[Tensor]) -> None:
        """Find the clusters of each codebook."""
        self._mates = []
        for book in codebooks:
            group = torch.from_numpy(group_codes(book.detach().cpu().numpy(), self._clusters))
            mates = (group[:, None] == group[None]) & ~torch.eye(len(group), dtype=torch.bool)
            self._mates.append(mates.to(book.device))

    def measure(self, batch: TrainBatch) -> Tensor:
        """The weighted cross-entropy over the codes of the batch, summed over levels."""
        total = batch.quantized.new_zeros(())
        for level, (book, mates) in enumerate(zip(batch.codebooks, self._mates, strict=True)):
            codes = batch.codes[:, level]
            codes = codes[codes >= 0]  # a level that quantise dropout left out has -1
            if len(book) < _FEWEST_TO_SHARE or not len(codes):
                continue
            mate = torch.multinomial(mates[codes].float(), 1).squeeze(1)
            products = (book[codes] @ book.T).scatter(1, codes[:, None], -torch.inf)
            total = total + functional.cross_entropy(products, mate)
        return self._weight * total


def group_codes(book: FloatArray, clusters: int) -> IndexArray:
    """The cluster (K,) of each code, all of nearly equal size and none of one code only."""
    distinct = len(np.unique(book, axis=0))
    n_groups = min(clusters, len(book) // _FEWEST_TO_SHARE, distinct - 1)
    if n_groups <= 1:
        return np.zeros(len(book), dtype=np.int64)
    plan = KMeansPlan(iterations=_KMEANS_ITERATIONS, seed=0)
    return fit_even_centres(book, n_groups, plan).members.astype(np.int64)

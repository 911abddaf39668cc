"""What a quantizer is, and which there are.

Owns the Protocol that every quantizer meets and the dict that names them. Knows neither items nor
uniqueness: two vectors may get the same codes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from genrec.errors import DataError
from genrec.recipe import find_choice
from genrec.tokenizers.assign import CodeArray
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.rqkmeans import RqKMeans
from genrec.tokenizers.rqvae import RqVae
from genrec.types import FloatArray

LossHistory = list[dict[str, float]]
"""One record an epoch or level, ready for JSON."""


class Quantizer(Protocol):
    """Vectors to codes and back, by adding one codebook row a level.

    Shapes:
        vectors: (N, D) float32.
        latents: (N, d) float32; near the sum of the item's codebook rows.
        codes: (N, L) int32.
    """

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, d) a level, as fitted."""
        ...

    def fit_vectors(self, vectors: FloatArray) -> LossHistory:
        """Learn the codebooks; the loss as it fell."""
        ...

    def project_vectors(self, vectors: FloatArray) -> FloatArray:
        """The latents that the codebooks quantize."""
        ...

    def encode_vectors(self, vectors: FloatArray) -> CodeArray:
        """The codes of each vector, which other vectors may share."""
        ...

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """The vectors that codes stand for."""
        ...

    def list_weights(self) -> dict[str, FloatArray]:
        """Everything that was learned, by name."""
        ...

    def restore_weights(self, weights: dict[str, FloatArray]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this quantizer does not have.
        """
        ...


QuantizerMaker = Callable[[TokenizeRecipe, int], Quantizer]

QUANTIZERS: dict[str, QuantizerMaker] = {"rqvae": RqVae, "rqkmeans": RqKMeans}


def build_quantizer(recipe: TokenizeRecipe, dimensions: int) -> Quantizer:
    """The quantizer that the recipe names, not yet fitted.

    Args:
        recipe: its name and values.
        dimensions: D, the width of the vectors.

    Raises:
        RecipeError: an unknown name.
    """
    return find_choice("quantizer", recipe.quantizer, QUANTIZERS)(recipe, dimensions)


def check_vectors(vectors: FloatArray, source: str, dimensions: int | None = None) -> None:
    """Raise unless the vectors can be quantized.

    Args:
        vectors: one row an item.
        source: where they came from, for messages.
        dimensions: the width they must have; None accepts any.

    Raises:
        DataError: no row, another width, or rows with NaN or infinity, which are named.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:  # noqa: PLR2004
        raise DataError(f"{source} must hold one vector an item, but has shape {vectors.shape}")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise DataError(
            f"{source} holds vectors of {vectors.shape[1]} dimensions, but the tokenizer was "
            f"fitted to {dimensions}; embed these items with the same recipe"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        shown = ", ".join(str(row) for row in bad[:10]) + (", ..." if bad.size > 10 else "")  # noqa: PLR2004
        raise DataError(
            f"{source} holds NaN or infinity in {bad.size:,} of {len(vectors):,} rows ({shown}); "
            f"a vector must be finite: look at these items' text, then run `genrec embed` again"
        )

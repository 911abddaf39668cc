"""What a quantizer is, and which there are.

Owns the Protocol that every quantizer meets and the dict that names them. Knows nothing of
uniqueness: two items may get the same codes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrec.errors import DataError
from genrec.recipe import find_choice
from genrec.tokenizers.inputs import VECTORS, FitInput
from genrec.tokenizers.quantizers.collaborative import make_collaborative
from genrec.tokenizers.quantizers.controls import make_random, make_sequential, need_data
from genrec.tokenizers.quantizers.fsq import make_fsq
from genrec.tokenizers.quantizers.gmc import Gmc, find_gmc_needs
from genrec.tokenizers.quantizers.imported import Imported
from genrec.tokenizers.quantizers.letter import build_letter, find_letter_needs
from genrec.tokenizers.quantizers.opq import ProductCodes
from genrec.tokenizers.quantizers.rqkmeans import RqKMeans
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.quantizers.title import Title
from genrec.tokenizers.quantizers.ulmrec import UlmRec
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.tokenizers.vectors import VectorRows, read_chunks
from genrec.types import FloatArray

LossHistory = list[dict[str, float]]
"""One record an epoch or level, ready for JSON."""


class Quantizer(Protocol):
    """Items to codes.

    Most quantize a vector: its latent is near the sum of one codebook row a level. The controls of
    P5 and OpenP5 name items without vectors: they have no codebooks, and their codes are unique.

    Shapes:
        vectors: (n, D) float32.
        latents: (n, d) float32.
        codes: (n, L) int32.
    """

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has; final once fitted or restored."""
        ...

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, d) a level, as fitted; none where codes do not come from vectors."""
        ...

    def fit(self, given: FitInput) -> LossHistory:
        """Learn from the items; the loss as it fell."""
        ...

    def encode(self, given: FitInput) -> CodeArray:
        """The codes of each item, which others may share where there are codebooks."""
        ...

    def project(self, given: FitInput) -> FloatArray:
        """The latents (N, d) that the codebooks quantize, each near the sum of its codes' rows."""
        ...

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """The vectors that codes stand for."""
        ...

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """Everything that was learned, by name."""
        ...

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this quantizer does not have.
        """
        ...


@runtime_checkable
class SpellsCodes(Protocol):
    """A quantizer whose codes are words already, and need no tokens of their own."""

    def spell_codes(self, codes: CodeArray) -> list[str]:
        """The text of each row of codes (N, L)."""
        ...


@runtime_checkable
class FixesLevels(Protocol):
    """A quantizer whose first levels say what an item is, and may not change to be unique."""

    @property
    def fixed_levels(self) -> int:
        """How many levels these are."""
        ...


@runtime_checkable
class ExtendsCodes(Protocol):
    """A quantizer whose codes say nothing of an item, so that new items get any that are free."""

    def extend_codes(self, n_items: int, taken: CodeArray) -> CodeArray:
        """Codes (n, L) for that many new items, none of them among those that are taken (M, L)."""
        ...


QuantizerMaker = Callable[[TokenizeRecipe, int], Quantizer]


@dataclass(frozen=True, slots=True)
class QuantizerKind:
    """How a quantizer is made (from the recipe and D), and what it cannot do without."""

    make: QuantizerMaker
    find_needs: Callable[[TokenizeRecipe], frozenset[str]]


def _need_vectors(recipe: TokenizeRecipe) -> frozenset[str]:
    del recipe
    return frozenset({VECTORS})


def _need_nothing(recipe: TokenizeRecipe) -> frozenset[str]:
    del recipe
    return frozenset()


QUANTIZERS: dict[str, QuantizerKind | QuantizerMaker] = {
    "imported": QuantizerKind(Imported, _need_nothing),
    "rqvae": QuantizerKind(RqVae, _need_vectors),
    "fsq": QuantizerKind(make_fsq, _need_vectors),
    "letter": QuantizerKind(build_letter, find_letter_needs),
    "gmc": QuantizerKind(Gmc, find_gmc_needs),
    "ulmrec-users": QuantizerKind(UlmRec, _need_vectors),
    "rqkmeans": QuantizerKind(RqKMeans, _need_vectors),
    "opq": QuantizerKind(ProductCodes, _need_vectors),
    "random": QuantizerKind(make_random, _need_nothing),
    "sequential": QuantizerKind(make_sequential, need_data),
    "collaborative": QuantizerKind(make_collaborative, need_data),
    "title": QuantizerKind(Title, need_data),
}


def find_quantizer(recipe: TokenizeRecipe) -> QuantizerKind:
    """The kind of quantizer that the recipe names; a plug-in is taken to need vectors.

    Raises:
        RecipeError: an unknown name.
    """
    found = find_choice("quantizer", recipe.quantizer, QUANTIZERS)
    return found if isinstance(found, QuantizerKind) else QuantizerKind(found, _need_vectors)


def build_quantizer(recipe: TokenizeRecipe, dimensions: int) -> Quantizer:
    """The quantizer that the recipe names, not yet fitted.

    Args:
        recipe: its name and values.
        dimensions: D, the width of the vectors; 0 where there are none.

    Raises:
        RecipeError: an unknown name.
    """
    return find_quantizer(recipe).make(recipe, dimensions)


def check_vectors(vectors: VectorRows, source: str, dimensions: int | None = None) -> None:
    """Raise unless the vectors can be quantized; reads them once, chunk by chunk.

    Args:
        vectors: one row an item.
        source: where they came from, for messages.
        dimensions: the width they must have; None accepts any.

    Raises:
        DataError: no row, another width, or rows with NaN or infinity, which are named.
    """
    if len(vectors.shape) != 2 or 0 in vectors.shape:  # noqa: PLR2004
        raise DataError(f"{source} must hold one vector an item, but has shape {vectors.shape}")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise DataError(
            f"{source} holds vectors of {vectors.shape[1]} dimensions, but the tokenizer was "
            f"fitted to {dimensions}; embed these items with the same recipe"
        )
    found = [
        start + np.flatnonzero(~np.isfinite(chunk).all(axis=1))
        for start, chunk in read_chunks(vectors)
    ]
    bad = np.concatenate(found)
    if bad.size:
        shown = ", ".join(str(row) for row in bad[:10]) + (", ..." if bad.size > 10 else "")  # noqa: PLR2004
        raise DataError(
            f"{source} holds NaN or infinity in {bad.size:,} of {len(vectors):,} rows ({shown}); "
            f"a vector must be finite: look at these items' text, then run `genrec embed` again"
        )

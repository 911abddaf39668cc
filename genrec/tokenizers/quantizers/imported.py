"""The quantizer of a vocabulary that was made elsewhere: there is none, only its codes.

Owns the refusals. Knows no file; `peer_import.py` makes such a vocabulary.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.types import FloatArray

IMPORTED = "imported"


class Imported:
    """Stands where a quantizer would; its items keep the codes that they came with."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """Take over the sizes of the levels."""
        del dimensions
        self._recipe = recipe

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has."""
        return self._recipe.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """None: codes came without vectors."""
        return ()

    def fit(self, given: FitInput) -> NoReturn:
        """Refuse.

        Raises:
            DataError: always.
        """
        del given
        raise DataError(
            "quantizer 'imported' is not fitted: `genrec tokenize import INDEX.json -o DIR` makes "
            "a tokenizer of an index file; to fit one, name a quantizer such as rqvae"
        )

    def encode(self, given: FitInput) -> NoReturn:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise self._refuse_vectors(f"{given.n_items:,} items")

    def project(self, given: FitInput) -> NoReturn:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise self._refuse_vectors(f"{given.n_items:,} items")

    def decode_codes(self, codes: NDArray[np.int32]) -> NoReturn:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise self._refuse_vectors(f"{len(codes):,} code sequences")

    def _refuse_vectors(self, what: str) -> DataError:
        source = self._recipe.options.get("source", "an index file")
        return DataError(
            f"this vocabulary was imported from {source}, which holds codes and no quantizer: "
            f"{what} cannot be turned from or to vectors; fit a tokenizer of your own, or import "
            f"an index that has these items"
        )

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """Nothing."""
        return {}

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Accept nothing but nothing.

        Raises:
            ArtifactError: there are weights.
        """
        if weights:
            raise ArtifactError(
                f"an imported vocabulary has no weights, but these were given: {sorted(weights)}; "
                f"import the index again"
            )

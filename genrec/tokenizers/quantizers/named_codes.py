"""Codes that belong to item ids, not to vectors: the controls of P5 and OpenP5.

Owns remembering which item has which codes. Knows no rule that gives them; see `controls.py` and
`collaborative.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from genrec.errors import ArtifactError, DataError, join_problems
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray

_IDS, _CODES, _SIZES = "named.item_ids", "named.codes", "named.codebook_sizes"


@dataclass(frozen=True, slots=True)
class Named:
    """The codes of all items.

    Shapes:
        codes: (N, L) int32, no two rows alike.
        codebook_sizes: L ints.
    """

    codes: CodeArray
    codebook_sizes: tuple[int, ...]


Numbering = Callable[[TokenizeRecipe, FitInput], Named]
"""A rule that gives every item codes of its own."""

Extension = Callable[[TokenizeRecipe, tuple[int, ...], int, CodeArray], CodeArray]
"""Codes (n, L) for n more items, from the sizes and the codes (M, L) that are taken."""


class NamedCodes:
    """A quantizer that knows the items it was fitted to by their ids, and no others."""

    def __init__(self, recipe: TokenizeRecipe, number: Numbering, extend: Extension) -> None:
        """Nothing is known before the rule is applied or codes are restored."""
        self._recipe = recipe
        self._number = number
        self._extend = extend
        self._named = Named(np.zeros((0, 0), dtype=np.int32), recipe.codebook_sizes)
        self._rows: dict[str, int] = {}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has; final once fitted or restored."""
        return self._named.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """None: codes do not come from vectors."""
        return ()

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Apply the rule to the items; there is no loss.

        Raises:
            CapacityError: more items than codes.
            DataError: items that the rule cannot name.
        """
        self._remember(given.item_ids, self._number(self._recipe, given))
        return []

    def _remember(self, item_ids: tuple[str, ...], named: Named) -> None:
        self._named = named
        self._rows = {item_id: row for row, item_id in enumerate(item_ids)}

    def encode(self, given: FitInput) -> CodeArray:
        """The codes of items that were fitted.

        Raises:
            DataError: other items, all of them named.
        """
        unknown = [repr(item_id) for item_id in given.item_ids if item_id not in self._rows]
        if unknown:
            raise DataError(
                join_problems(
                    f"quantizer {self._recipe.quantizer!r} knows the {len(self._rows):,} items it "
                    f"was fitted to, but nothing that could name these; fit it to the whole "
                    f"catalogue, or use one that encodes vectors, such as rqvae",
                    unknown,
                )
            )
        return self._named.codes[[self._rows[item_id] for item_id in given.item_ids]]

    def extend_codes(self, n_items: int, taken: CodeArray) -> CodeArray:
        """Codes (n, L) for that many new items, none of them among those that are taken (M, L).

        Raises:
            CapacityError: too few codes are free.
            DataError: the rule has nothing to say of new items.
        """
        return self._extend(self._recipe, self.codebook_sizes, n_items, taken)

    def project(self, given: FitInput) -> NoReturn:
        """Refuse; there are no latents.

        Raises:
            DataError: always.
        """
        raise refuse_vectors(self._recipe, f"{given.n_items:,} items have no latents")

    def decode_codes(self, codes: CodeArray) -> NoReturn:
        """Refuse; codes stand for no vectors.

        Raises:
            DataError: always.
        """
        raise refuse_vectors(self._recipe, f"{len(codes):,} code sequences stand for no vectors")

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """Item ids, codes and sizes."""
        ids = json.dumps(list(self._rows), ensure_ascii=False).encode("utf-8", "surrogatepass")
        return {
            _IDS: np.frombuffer(ids, dtype=np.uint8).copy(),
            _CODES: self._named.codes,
            _SIZES: np.array(self.codebook_sizes, dtype=np.int64),
        }

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that are none of these.
        """
        if weights.keys() != {_IDS, _CODES, _SIZES}:
            raise ArtifactError(
                f"weights {sorted(weights)} are not those of {self._recipe.quantizer!r}: "
                f"{sorted((_IDS, _CODES, _SIZES))}"
            )
        ids = tuple(json.loads(weights[_IDS].tobytes().decode("utf-8", "surrogatepass")))
        named = Named(weights[_CODES].astype(np.int32), tuple(weights[_SIZES].tolist()))
        if named.codes.shape != (len(ids), len(named.codebook_sizes)):
            raise ArtifactError(
                f"codes of shape {named.codes.shape} do not fit {len(ids):,} items and "
                f"{len(named.codebook_sizes)} levels"
            )
        self._remember(ids, named)


def refuse_vectors(recipe: TokenizeRecipe, what: str) -> DataError:
    """The error of a quantizer without codebooks that is asked for latents or vectors."""
    return DataError(
        f"quantizer {recipe.quantizer!r} names items without looking at vectors: {what}; "
        f"use one that encodes vectors, such as rqvae"
    )

"""What every quantizer must do, however it makes codes.

`tests/tokenizers/test_contract.py` has a case for each name in `QUANTIZERS`; a new quantizer
without one fails there. Items are planted: item i belongs to cluster i % CLUSTERS by its vector,
its domain, its title's first word and the users who choose it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.errors import DataError, GenrecError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import Quantizer, build_quantizer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray

CLUSTERS = 4


@dataclass(frozen=True)
class Case:
    """One quantizer, small enough to fit in a moment.

    Attributes:
        values: of the recipe.
        subject: what it names.
        find_cluster: the part of the codes that items of one cluster share; None where codes say
            nothing of clusters.
    """

    values: dict[str, Any]
    subject: str = "items"
    find_cluster: Callable[[CodeArray], CodeArray] | None = lambda codes: codes[:, :1]

    @property
    def recipe(self) -> TokenizeRecipe:
        """The case's recipe."""
        return TokenizeRecipe.model_validate(self.values)

    def adapt(self, given: FitInput) -> FitInput:
        """The planted items as this quantizer's subject."""
        return given if self.subject == "items" else replace(given, subject=self.subject)


def fit(case: Case, given: FitInput) -> Quantizer:
    """The case's quantizer, fitted to these items."""
    quantizer = build_quantizer(case.recipe, given.dimensions)
    quantizer.fit(given)
    return quantizer


def measure_purity(codes: CodeArray, cluster: np.ndarray) -> float:
    """The share of items whose code is that of their cluster's majority, and of no other's."""
    keys = [tuple(row) for row in codes.tolist()]
    owners = {key: Counter(cluster[[k == key for k in keys]]).most_common(1)[0][0] for key in keys}
    return float(np.mean([owners[key] == own for key, own in zip(keys, cluster, strict=True)]))


class QuantizerContract:
    """Subclass in a test module with fixtures `case`, `given` and `fitted`."""

    def test_codes_are_codes(self, fitted: Quantizer, given: FitInput) -> None:
        codes = fitted.encode(given)
        assert codes.dtype == np.int32
        assert codes.shape == (given.n_items, len(fitted.codebook_sizes))
        assert ((codes >= 0) & (codes < np.array(fitted.codebook_sizes))).all()
        if fitted.codebooks:
            assert tuple(map(len, fitted.codebooks)) == fitted.codebook_sizes
        else:
            assert len(np.unique(codes, axis=0)) == given.n_items

    def test_planted_clusters_are_learned(
        self, case: Case, fitted: Quantizer, given: FitInput
    ) -> None:
        codes = fitted.encode(given)
        if case.find_cluster is not None:
            found = case.find_cluster(codes)
            assert measure_purity(found, np.arange(given.n_items) % CLUSTERS) >= 0.9
            assert len(np.unique(found, axis=0)) < given.n_items
        if fitted.codebooks:
            spread = float(given.rows[:].var(axis=0).mean())
            error = float(((given.rows[:] - fitted.decode_codes(codes)) ** 2).mean())
            assert error < 0.5 * spread

    def test_latents_are_near_the_sum_of_their_codes(
        self, fitted: Quantizer, given: FitInput
    ) -> None:
        if not fitted.codebooks:
            with pytest.raises(DataError, match="looking at vectors"):
                fitted.project(given)
            with pytest.raises(DataError, match="looking at vectors"):
                fitted.decode_codes(fitted.encode(given))
            return
        latents, codes = fitted.project(given), fitted.encode(given)
        total = sum(book[codes[:, level]] for level, book in enumerate(fitted.codebooks))
        assert latents.shape == np.shape(total)
        spread = ((latents - latents.mean(axis=0)) ** 2).sum()
        assert ((latents - total) ** 2).sum() < 0.6 * spread

    def test_same_seed_same_codes(self, case: Case, fitted: Quantizer, given: FitInput) -> None:
        again = fit(case, given)
        np.testing.assert_array_equal(again.encode(given), fitted.encode(given))
        for name, value in fitted.list_weights().items():
            np.testing.assert_array_equal(again.list_weights()[name], value)

    def test_codes_do_not_depend_on_the_company(self, fitted: Quantizer, given: FitInput) -> None:
        codes = fitted.encode(given)
        order = np.random.default_rng(3).permutation(given.n_items)
        np.testing.assert_array_equal(fitted.encode(given.select_items(order)), codes[order])
        for row in (0, 7, given.n_items - 1):
            alone = fitted.encode(given.select_items(np.array([row])))
            np.testing.assert_array_equal(alone, codes[row : row + 1])

    def test_what_is_saved_comes_back(self, case: Case, given: FitInput, tmp_path: Path) -> None:
        made = fit_tokenizer(case.recipe, given).tokenizer
        made.save_pretrained(tmp_path)
        loaded = SemanticIdTokenizer.from_pretrained(tmp_path)
        np.testing.assert_array_equal(loaded.codes, made.codes)
        assert loaded.sids == made.sids
        assert len(set(loaded.sids)) == given.n_items
        assert loaded.codebook_sizes == made.codebook_sizes
        np.testing.assert_array_equal(loaded.quantizer.encode(given), made.quantizer.encode(given))

    def test_foreign_weights_are_refused(self, case: Case, given: FitInput) -> None:
        quantizer = build_quantizer(case.recipe, given.dimensions)
        with pytest.raises(GenrecError, match="weights"):
            quantizer.restore_weights({"other": np.zeros(3, dtype=np.float32)})

    @pytest.mark.parametrize("n_items", [1, 2, 5])
    def test_few_items_get_codes_of_their_own(
        self, case: Case, given: FitInput, n_items: int
    ) -> None:
        self.expect_unique_or_explained(case, given.select_items(np.arange(n_items)))

    @pytest.mark.parametrize("kind", ["identical", "zero"])
    def test_items_alike_get_codes_of_their_own(
        self, case: Case, given: FitInput, kind: str
    ) -> None:
        if given.vectors is None:
            pytest.skip("this quantizer looks at no vectors")
        one = np.zeros(given.dimensions) if kind == "zero" else given.rows[:][0]
        vectors: FloatArray = np.tile(one.astype(np.float32), (given.n_items, 1))
        self.expect_unique_or_explained(case, replace(given, vectors=vectors))

    def test_narrow_vectors_get_codes_or_an_error(self, case: Case, given: FitInput) -> None:
        if given.vectors is None:
            pytest.skip("this quantizer looks at no vectors")
        narrow = np.ascontiguousarray(given.rows[:][:, :2])
        self.expect_unique_or_explained(case, replace(given, vectors=narrow))

    def test_rows_that_are_not_finite_are_named(self, case: Case, given: FitInput) -> None:
        if given.vectors is None:
            pytest.skip("this quantizer looks at no vectors")
        vectors = given.rows[:].copy()
        vectors[3, 0] = np.nan
        with pytest.raises(DataError, match=r"NaN or infinity in 1 of \d+ rows \(3\)"):
            fit_tokenizer(case.recipe, replace(given, vectors=vectors))

    def expect_unique_or_explained(self, case: Case, given: FitInput) -> None:
        """Every item ends with an ID of its own, or one of our errors says why not."""
        try:
            made = fit_tokenizer(case.recipe, given).tokenizer
        except GenrecError as error:
            assert len(str(error)) > 40
            return
        assert len(set(made.sids)) == given.n_items

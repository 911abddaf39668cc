"""Latent semantic analysis: TF-IDF and truncated SVD, fitted to the catalogue's own text.

Owns the encoder `lsa`, which needs no download. Knows no file and no cache: each vector depends on
the whole catalogue.

Source: Deerwester et al. 1990; sublinear term frequency as in Manning et al. 2008, section 6.4.1;
singular values raised to a power below 1 as in Caron 2001. On amazon14-beauty, power 0.5 instead of
1 put the next item of a history among an item's 10 nearest for 6.3% instead of 5.8% of the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from genrec.errors import DataError
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.sections import LsaSection
from genrec.types import FloatArray

_NOISE = 1e-5
_log = logging.getLogger(__name__)


class LsaEncoder:
    """The encoder that the recipe's `lsa` section describes."""

    digest = ""

    def __init__(self, recipe: EmbedRecipe) -> None:
        """Nothing is fitted before texts are given."""
        self._values = recipe.lsa
        self._seed = recipe.seed

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of length 1, (N, D); zeros for a text without a known term.

        Raises:
            DataError: no text holds a single term.
        """
        return self._fit(texts)[0]

    def fit_texts(self, texts: Sequence[str]) -> FittedLsa:
        """An encoder of later texts, in the space of these.

        Raises:
            DataError: no text holds a single term.
        """
        return self._fit(texts)[1]

    def _fit(self, texts: Sequence[str]) -> tuple[FloatArray, FittedLsa]:
        terms, vectorizers = _weigh_terms(texts, self._values)
        # The SVD cannot give more directions than the matrix has rows or columns.
        dimensions = min(self._values.dimensions, *terms.shape)
        if dimensions < self._values.dimensions:
            _log.info(
                "lsa: %d dimensions instead of %d, as %d texts hold only %d terms",
                dimensions,
                self._values.dimensions,
                *terms.shape,
            )
        left, singular, right = randomized_svd(
            terms, dimensions, n_iter=self._values.iterations, random_state=self._seed
        )
        # Directions beyond the texts' rank are noise, which a power below 1 would blow up.
        real = singular > _NOISE * singular[0]
        weights = np.where(real, singular, 0) ** self._values.singular_power * real
        vectors: FloatArray = normalize(left * weights).astype(np.float32)
        shares = np.divide(weights, singular, out=np.zeros_like(weights), where=real)
        return vectors, FittedLsa(vectorizers, right.T * shares)


class FittedLsa:
    """LSA of one catalogue, for texts that came later.

    Source: folding-in, Deerwester et al. 1990, section "Adding new documents". The vectors of the
    catalogue's own texts come out almost as they were: the SVD is a randomized one.
    """

    digest = ""

    def __init__(self, vectorizers: Sequence[TfidfVectorizer], projection: FloatArray) -> None:
        """Take over what a fit learned.

        Args:
            vectorizers: from texts to weighted terms.
            projection: (terms, D), from these to vectors.
        """
        self._vectorizers = vectorizers
        self._projection = projection

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of length 1, (N, D), each of its own text only; zeros without a known term."""
        terms = csr_matrix(
            hstack([vectorizer.transform(texts) for vectorizer in self._vectorizers])
        )
        vectors: FloatArray = normalize(terms @ self._projection).astype(np.float32)
        return vectors


def _weigh_terms(
    texts: Sequence[str], values: LsaSection
) -> tuple[csr_matrix, list[TfidfVectorizer]]:
    """The TF-IDF matrix and its makers: words first, then characters where the recipe says so."""
    kinds = [("word", values.word_ngrams)]
    if values.char_ngrams is not None:
        kinds.append(("char_wb", values.char_ngrams))
    # In a catalogue of a few items a term may well be in one only.
    fewest = min(values.min_items, max(1, len(texts) // 2))
    blocks, vectorizers = [], []
    for analyzer, ngrams in kinds:
        vectorizer = TfidfVectorizer(
            analyzer=analyzer,
            ngram_range=ngrams,
            min_df=fewest,
            max_features=values.max_terms,
            sublinear_tf=True,
            dtype=np.float32,
        )
        try:
            blocks.append(vectorizer.fit_transform(texts))
            vectorizers.append(vectorizer)
        except ValueError as error:
            if "vocabulary" not in str(error) and "no terms remain" not in str(error):
                raise
            continue
    if not blocks:
        raise DataError(
            f"the text of the {len(texts):,} items holds no term that at least {fewest} of them "
            f"share; check the data recipe's text fields, lower lsa.min_items, or use the encoder "
            f"sentence-transformers"
        )
    return csr_matrix(hstack(blocks)), vectorizers

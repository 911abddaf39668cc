"""Residual k-means: each level clusters what the levels before it left over.

Owns the fit and the greedy encoding. Has no network and no schedule, so it is the quick choice for
a small catalogue. Knows neither items nor uniqueness.

Source: the tokenizer of OneRec (Deng et al. 2025) and GRID (Ju et al. 2025), except that clusters
are not of equal size; instead each level weighs items by the inverse of their residual's squared
length. On amazon14-beauty this raised the last level's perplexity from 113 to 196 of 256, and
lowered collisions from 14.6% to 11.9% and the cosine from 0.946 to 0.939.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from genrec.errors import ArtifactError
from genrec.progress import track_progress
from genrec.tokenizers.assign import CodeArray
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.vectors import read_chunks
from genrec.types import FloatArray

_CHUNK_ITEMS = 8192
_WEIGHT_FLOOR = 1e-3


class RqKMeans:
    """A residual quantizer whose latents are the vectors themselves."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """Codebooks of zeros, until they are fitted or restored."""
        self._recipe = recipe
        self._codebooks = tuple(
            np.zeros((size, dimensions), dtype=np.float32) for size in recipe.codebook_sizes
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The recipe's."""
        return self._recipe.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, D) a level, as fitted."""
        return self._codebooks

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Cluster the residuals level by level; the mean squared error left after each."""
        residual = np.array(given.rows[:], dtype=np.float32)
        books: list[FloatArray] = []
        history = []
        sizes = self._recipe.codebook_sizes
        for level, size in enumerate(track_progress(sizes, "clustering", unit="levels")):
            book = self._cluster(residual, size)
            books.append(book)
            residual -= book[_find_nearest(residual, book)]
            history.append({"level": float(level), "error": float((residual**2).mean())})
        self._codebooks = tuple(books)
        return history

    def _cluster(self, residual: FloatArray, size: int) -> FloatArray:
        """`size` centres; where fewer rows are distinct, the rest of the centres are zero."""
        distinct = np.unique(residual, axis=0)
        if len(distinct) <= size:
            book = np.zeros((size, residual.shape[1]), dtype=np.float32)
            book[: len(distinct)] = distinct
            return book
        values = self._recipe.rqkmeans
        found = KMeans(
            size,
            n_init=values.restarts,
            max_iter=values.iterations,
            random_state=self._recipe.seed,
        ).fit(residual, sample_weight=_weigh_items(residual, values.balance))
        centres: FloatArray = found.cluster_centers_.astype(np.float32)
        return centres

    def project(self, given: FitInput) -> FloatArray:
        """The vectors themselves."""
        return np.asarray(given.rows[:], dtype=np.float32)

    def encode(self, given: FitInput) -> CodeArray:
        """At each level the code nearest to what is left."""
        codes = np.empty((given.n_items, len(self._codebooks)), dtype=np.int32)
        for start, chunk in read_chunks(given.rows):
            residual = chunk.copy()
            for level, book in enumerate(self._codebooks):
                nearest = _find_nearest(residual, book)
                codes[start : start + len(chunk), level] = nearest
                residual -= book[nearest]
        return codes

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """The sum of the codes' centres."""
        parts = [book[codes[:, level]] for level, book in enumerate(self._codebooks)]
        total: FloatArray = np.sum(parts, axis=0, dtype=np.float32)
        return total

    def list_weights(self) -> dict[str, FloatArray]:
        """The codebooks, by level."""
        return {f"codebooks.{level}": book for level, book in enumerate(self._codebooks)}

    def restore_weights(self, weights: dict[str, FloatArray]) -> None:
        """Take over codebooks that `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this quantizer does not have.
        """
        expected = {name: book.shape for name, book in self.list_weights().items()}
        found = {name: value.shape for name, value in weights.items()}
        if expected != found:
            raise ArtifactError(f"weights {found} are not those of this rqkmeans: {expected}")
        self._codebooks = tuple(weights[name] for name in expected)


def _weigh_items(residual: FloatArray, balance: float) -> FloatArray:
    """Weights that give items with short residuals, which lie in dense places, codes to share too.

    Otherwise most of them get one code near zero at every later level, and collide.
    """
    squares = (residual.astype(np.float64) ** 2).sum(axis=1)
    weights = (squares / squares.mean() + _WEIGHT_FLOOR) ** (-balance / 2)
    scaled: FloatArray = (weights / weights.mean()).astype(np.float32)
    return scaled


def _find_nearest(residual: FloatArray, book: FloatArray) -> CodeArray:
    squares = (book**2).sum(axis=1)
    nearest = [
        np.argmin(squares - 2 * residual[start : start + _CHUNK_ITEMS] @ book.T, axis=1)
        for start in range(0, len(residual), _CHUNK_ITEMS)
    ]
    return np.concatenate(nearest).astype(np.int32)

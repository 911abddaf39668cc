"""Ids by who chooses what together: spectral clusters of the co-occurrence graph, split again.

Owns the graph and the recursion. Knows no text and no vector.

Source: collaborative indexing of P5-CID (Hua et al. 2023, "How to index item IDs for recommendation
foundation models", section 4.3): items are nodes, edges count the users who chose both, spectral
clustering splits them into N clusters, and a cluster of more than k items is split again; items of
a last cluster are numbered. Clusters come from the eigenvectors of the normalised adjacency and
k-means on their rows (Ng, Jordan and Weiss 2001).

Deviations: codes are padded with 0 before the last one to the deepest branch, so that all IDs are
equally long. A cluster whose items share no user, or that clustering leaves whole, is cut into
equal runs in catalogue order. Items that nobody chose in training make a cluster of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import ArpackError, eigsh
from sklearn.preprocessing import normalize

from genrec.errors import DataError
from genrec.progress import show_progress
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.kmeans import KMeansPlan, fit_centres
from genrec.tokenizers.quantizers.named_codes import Named, NamedCodes
from genrec.tokenizers.quantizers.nearest_code import NearestCode
from genrec.tokenizers.recipe import MAX_LEVELS, TokenizeRecipe
from genrec.tokenizers.sections import CollaborativeSection
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray, IndexArray

_ITERATIONS = 50
_DENSE_ITEMS = 400
_TOLERANCE = 1e-4


def make_collaborative(recipe: TokenizeRecipe, dimensions: int) -> NamedCodes:
    """Ids from the training interactions' co-occurrence graph."""
    del dimensions
    return NamedCodes(recipe, _number_collaborative, _refuse_more)


def _refuse_more(
    recipe: TokenizeRecipe, sizes: tuple[int, ...], n_items: int, taken: CodeArray
) -> NoReturn:
    del recipe, sizes, taken
    raise DataError(
        f"collaborative IDs say who chooses an item together with others, and nobody has chosen "
        f"{n_items:,} new items yet; fit again when there are interactions, or use a quantizer "
        f"that encodes vectors, such as rqvae"
    )


def _number_collaborative(recipe: TokenizeRecipe, given: FitInput) -> Named:
    graph = build_graph(given.histories(), given.n_items)
    leaves = split_graph(graph, recipe.collaborative, recipe.seed)
    depth = max(len(leaf.path) for leaf in leaves)
    if depth + 1 > MAX_LEVELS:
        raise DataError(
            f"collaborative IDs would have {depth + 1} levels, but there are {MAX_LEVELS} letters "
            f"to spell them; raise collaborative.max_items (now {recipe.collaborative.max_items}) "
            f"or collaborative.clusters (now {recipe.collaborative.clusters})"
        )
    codes = np.zeros((given.n_items, depth + 1), dtype=np.int32)
    for leaf in leaves:
        codes[leaf.items, : len(leaf.path)] = leaf.path
        codes[leaf.items, -1] = np.arange(len(leaf.items))
    return Named(codes, tuple(int(size) for size in codes.max(axis=0) + 1))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A cluster that is not split again: the numbers on the way to it, and its items."""

    path: tuple[int, ...]
    items: IndexArray


def build_graph(histories: list[IndexArray], n_items: int) -> csr_matrix:
    """How many users chose both items (N, N); symmetric, nothing on the diagonal."""
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    shape = (len(histories), n_items)
    chosen = csr_matrix((np.ones(len(items), dtype=np.float32), (users, items)), shape=shape)
    chosen.data[:] = 1.0  # a user who chose an item twice counts once
    graph = csr_matrix(chosen.T @ chosen)
    graph.setdiag(0)
    graph.eliminate_zeros()
    return graph


def split_graph(graph: csr_matrix, values: CollaborativeSection, seed: int) -> list[Leaf]:
    """The last clusters of a recursive spectral clustering; every item is in one of them."""
    linked = np.diff(graph.indptr) > 0
    lonely = np.flatnonzero(~linked)
    n_items = graph.shape[0]
    if lonely.size in (0, n_items):
        waiting = [Leaf((), np.arange(n_items))]
    else:  # those that nobody chose together come after the clusters of the others
        others = np.flatnonzero(linked)
        parts = _split_items(graph, others, values, seed)
        waiting = [Leaf((place,), part) for place, part in enumerate([*parts, lonely])]
    leaves = []
    with show_progress("splitting clusters", total=n_items, unit="items") as advance:
        while waiting:
            node = waiting.pop()
            if len(node.items) <= values.max_items:
                leaves.append(node)
                advance(len(node.items))
                continue
            parts = _split_items(graph, node.items, values, seed)
            waiting += [Leaf((*node.path, place), part) for place, part in enumerate(parts)]
    return leaves


def _split_items(
    graph: csr_matrix, items: IndexArray, values: CollaborativeSection, seed: int
) -> list[IndexArray]:
    """At least two parts of some items, the largest first; each item in one."""
    n_parts = min(values.clusters, len(items))
    part = csr_matrix(graph[items][:, items])
    label = np.zeros(len(items), dtype=np.int32)
    if part.nnz and n_parts > 1:
        rows = _embed_nodes(part, n_parts, seed)
        centres = fit_centres(rows, n_parts, KMeansPlan(_ITERATIONS, seed))
        label = NearestCode(centres).find_codes(rows)
    found = [items[label == code] for code in np.unique(label)]
    if len(found) == 1:
        return [run for run in np.array_split(items, n_parts) if len(run)]
    return sorted(found, key=lambda run: (-len(run), int(run[0])))


def _embed_nodes(part: csr_matrix, width: int, seed: int) -> FloatArray:
    """The nodes as rows (n, width) of length 1, near each other where edges are many."""
    degrees = np.asarray(part.sum(axis=1)).ravel()
    scale = diags(1 / np.sqrt(np.maximum(degrees, 1)))
    adjacency = scale @ part @ scale
    vectors = _find_leading(adjacency, width, seed)
    # An eigenvector is known up to its sign; a fixed one keeps the result the same everywhere.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    rows: FloatArray = normalize(vectors * np.where(largest < 0, -1, 1)).astype(np.float32)
    return rows


def _find_leading(adjacency: csr_matrix, width: int, seed: int) -> NDArray[np.float64]:
    """The eigenvectors (n, width) of the largest eigenvalues."""
    n = adjacency.shape[0]
    if n > max(_DENSE_ITEMS, 3 * width):
        start = np.random.default_rng(seed).uniform(-1, 1, n)
        try:
            found: NDArray[np.float64] = eigsh(
                adjacency.astype(np.float64), width, which="LA", v0=start, tol=_TOLERANCE
            )[1]
            return found
        except ArpackError as error:
            raise DataError(
                f"the co-occurrence graph of {n:,} items has no eigenvectors that can be found "
                f"({error}); lower collaborative.clusters (now {width})"
            ) from error
    leading: NDArray[np.float64] = np.linalg.eigh(adjacency.toarray().astype(np.float64))[1]
    return leading[:, -width:]

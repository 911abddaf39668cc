"""Whether a shared prefix means near in embedding space.

Owns exact nearest neighbours and what is counted among them. Knows codes and vectors; neither how
either was made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from genrec.tokenizers.measures.code_use import CodeTable, group_prefixes
from genrec.tokenizers.vectors import VectorRows, read_chunks
from genrec.types import FloatArray, IndexArray

NEIGHBOURS = 10
MAX_QUERIES = 5_000
_MIN_QUERIES = 500
_MAX_PRODUCTS = 10**9
_CHUNK_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A sample of items with their nearest items and some drawn at random.

    Shapes:
        queries: (Q,) int64 item rows, rising.
        nearest: (Q, k) int64, nearest first, none of them the item itself.
        similarity: (Q, k) float32, their cosines.
        strangers: (Q, k) int64, drawn at random, none of them the item itself.
        strange_similarity: (Q, k) float32.
    """

    queries: IndexArray
    nearest: IndexArray
    similarity: FloatArray
    strangers: IndexArray
    strange_similarity: FloatArray


def find_neighbours(
    vectors: VectorRows, k: int = NEIGHBOURS, max_queries: int = MAX_QUERIES, seed: int = 0
) -> Neighbours | None:
    """The k nearest of all items by cosine, exactly, for a sample of items; None with fewer than 3.

    Items without a direction (all zeros) are nobody's neighbours and have none. Reads the vectors
    once, chunk by chunk. Above 200,000 items the sample shrinks to no fewer than 500, so that time
    grows little.

    Args:
        vectors: (N, D).
        k: neighbours an item, fewer where there are fewer items.
        max_queries: items in the sample at most.
        seed: of the sample and of the strangers.
    """
    alive = _find_alive(vectors)
    k = min(k, len(alive) - 1)
    if k < 2:  # noqa: PLR2004 - one neighbour of two items says nothing
        return None
    rng = np.random.default_rng(seed)
    n_queries = min(len(alive), max_queries, max(_MIN_QUERIES, _MAX_PRODUCTS // len(alive)))
    queries = np.sort(rng.choice(alive, n_queries, replace=False))
    directions = _scale_rows(vectors[queries])
    nearest, similarity = _search_chunks(vectors, queries, directions, k)
    place = rng.integers(len(alive) - 1, size=(n_queries, k))
    # Places from the item's own on move one up, so that each other item is as likely.
    own = np.searchsorted(alive, queries)[:, None]
    strangers = alive[place + (place >= own)]
    strange = np.stack(
        [(directions * _scale_rows(vectors[column])).sum(axis=1) for column in strangers.T],
        axis=1,
    )
    return Neighbours(queries, nearest, similarity, strangers, strange)


def _find_alive(vectors: VectorRows) -> IndexArray:
    """The rows that have a direction."""
    return np.concatenate(
        [start + np.flatnonzero(chunk.any(axis=1)) for start, chunk in read_chunks(vectors)]
    )


def _scale_rows(rows: FloatArray) -> FloatArray:
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: FloatArray = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return scaled


def _search_chunks(
    vectors: VectorRows, queries: IndexArray, directions: FloatArray, k: int
) -> tuple[IndexArray, FloatArray]:
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for start, chunk in read_chunks(vectors, _CHUNK_ROWS):
        near = directions @ _scale_rows(chunk).T
        near[:, ~chunk.any(axis=1)] = -np.inf
        inside = np.flatnonzero((queries >= start) & (queries < start + len(chunk)))
        near[inside, queries[inside] - start] = -np.inf
        merged = np.concatenate([best, near], axis=1)
        kept = np.argpartition(-merged, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(merged, kept, axis=1)
        old = np.take_along_axis(rows, np.minimum(kept, k - 1), axis=1)
        rows = np.where(kept < k, old, start + kept - k)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(best, order, axis=1)


def measure_neighbours(codes: CodeTable, found: Neighbours) -> dict[str, Any]:
    """How well prefixes agree with nearness; every value a plain JSON value, None where undefined.

    `recall` is the share of an item's nearest items that share its prefix, `chance` what items
    drawn at random would give, and `ceiling` the most that the group sizes allow. `agreement` is
    (recall - chance) / (ceiling - chance): 0 for prefixes given out at random, 1 where every place
    beside an item is taken by a neighbour, whatever the sizes of the groups; so vocabularies with
    large and with small groups can be compared.

    Source: recall of the k nearest neighbours as in work on approximate search; the correction has
    the form of Hubert and Arabie's (1985) for chance.
    """
    n, k = len(codes), found.nearest.shape[1]
    depths = []
    for depth in range(1, codes.shape[1] + 1):
        group, sizes = group_prefixes(codes, depth)
        others = sizes[group[found.queries]] - 1
        recall = float((group[found.nearest] == group[found.queries][:, None]).mean())
        chance = float(others.mean() / (n - 1))
        ceiling = float(np.minimum(others, k).mean() / k)
        room = ceiling - chance
        depths.append(
            {
                "depth": depth,
                "recall": recall,
                "chance": chance,
                "ceiling": ceiling,
                "agreement": (recall - chance) / room if room > 1e-12 else None,  # noqa: PLR2004
            }
        )
    return {
        "k": k,
        "sampled_items": len(found.queries),
        "prefixes": depths,
        "rank_correlation": _correlate_prefixes(codes, found),
    }


def _correlate_prefixes(codes: CodeTable, found: Neighbours) -> float | None:
    """Spearman's rank correlation of shared-prefix length and cosine, over near and random pairs.

    Source: Spearman 1904, ties at their mean rank. Its sign is turned against that of the
    correlation with distance, so that more is better.
    """
    partners = np.concatenate([found.nearest, found.strangers], axis=1)
    near = np.concatenate([found.similarity, found.strange_similarity], axis=1)
    same = codes[partners] == codes[found.queries][:, None, :]
    shared = np.logical_and.accumulate(same, axis=2).sum(axis=2)
    return correlate_ranks(shared.ravel(), near.ravel())


def correlate_ranks(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Spearman's rank correlation; None where either does not vary."""
    if len(first) < 2 or (first == first[0]).all() or (second == second[0]).all():  # noqa: PLR2004
        return None
    value = float(spearmanr(first, second).statistic)
    return value if math.isfinite(value) else None

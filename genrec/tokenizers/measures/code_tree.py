"""The first two levels of a vocabulary as rings, and items on a plane.

Owns what the two pictures show: sizes, order and places. Draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from genrec.tokenizers.measures.categories import Categories, find_dominant
from genrec.tokenizers.measures.code_use import CodeTable, group_prefixes
from genrec.tokenizers.vectors import VectorRows
from genrec.types import FloatArray, IndexArray

MAX_POINTS = 1_500
ShareArray = NDArray[np.float64]
_SMALLEST_ARC = 1 / 240
_FEW_POINTS = 12
_PCA_WIDTH = 50


@dataclass(frozen=True, slots=True)
class Arc:
    """A part of a ring: the items of one prefix, or of several small ones alike.

    Attributes:
        ring: 0 for first codes, 1 for pairs of codes.
        start, end: between 0 and 1, a full turn.
        label: the commonest category, -1 where none is known.
        purity: the share of the items that have it; 1 where none is known.
    """

    ring: int
    start: float
    end: float
    label: int
    purity: float


def build_arcs(codes: CodeTable, known: Categories | None) -> list[Arc]:
    """The rings of a vocabulary: first codes by commonest category and size, pairs within each.

    Pairs that are too small to see are drawn as one with their like beside them.
    """
    first, sizes = group_prefixes(codes, 1)
    pair, pair_sizes = group_prefixes(codes, min(2, codes.shape[1]))
    label, count = _find_labels(first, len(sizes), known)
    pair_label, pair_count = _find_labels(pair, len(pair_sizes), known)
    home = np.zeros(len(pair_sizes), dtype=np.int64)
    home[pair] = first
    arcs, start, n = [], 0.0, len(codes)
    for group in np.lexsort((-sizes, label)).tolist():
        end = start + sizes[group] / n
        arcs.append(_make_arc(0, start, end, label[group], count[group] / sizes[group]))
        inside = np.flatnonzero(home == group)
        order = inside[np.lexsort((-pair_sizes[inside], pair_label[inside]))]
        arcs += _divide_arc(start, order, pair_sizes / n, pair_label, pair_count / n)
        start = end
    return arcs


def _make_arc(ring: int, start: float, end: float, label: int, purity: float) -> Arc:
    return Arc(ring, float(start), float(end), int(label), float(purity) if label >= 0 else 1.0)


def _find_labels(
    group: IndexArray, n_groups: int, known: Categories | None
) -> tuple[IndexArray, IndexArray]:
    label = np.full(n_groups, -1, dtype=np.int64)
    count = np.zeros(n_groups, dtype=np.int64)
    if known is not None:
        found, held = find_dominant(group[known.rows], known.labels)
        label[: len(found)], count[: len(held)] = found, held
    return label, count


def _divide_arc(
    start: float, order: IndexArray, share: ShareArray, label: IndexArray, held: ShareArray
) -> list[Arc]:
    """The second ring over one first code; neighbours of one label join while they are small."""
    arcs: list[Arc] = []
    place, width, pure = start, 0.0, 0.0
    for row, pair in enumerate(order.tolist()):
        width, pure = width + float(share[pair]), pure + float(held[pair])
        last = row + 1 == len(order) or label[order[row + 1]] != label[pair]
        if last or width >= _SMALLEST_ARC:
            arcs.append(_make_arc(1, place, place + width, label[pair], pure / width))
            place, width, pure = place + width, 0.0, 0.0
    return arcs


def place_items(vectors: VectorRows, seed: int = 0) -> tuple[IndexArray, FloatArray]:
    """A sample of items and their places on a plane on which near items are near.

    Principal components, then t-SNE (van der Maaten and Hinton 2008); with few items, or without
    t-SNE's room, principal components alone. One thread: the same seed gives the same places.

    Shapes:
        vectors: (N, D).
        returns: (n,) int64 rising, and (n, 2) float32.
    """
    rng = np.random.default_rng(seed)
    n = len(vectors)
    rows = np.sort(rng.choice(n, min(n, MAX_POINTS), replace=False))
    points = np.asarray(vectors[rows], dtype=np.float64)
    places = np.zeros((len(rows), 2), dtype=np.float32)
    if len(np.unique(points, axis=0)) < 2:  # noqa: PLR2004 - nothing to spread
        return rows, places
    with threadpool_limits(1):
        width = min(_PCA_WIDTH, *points.shape)
        reduced = PCA(width, svd_solver="full").fit_transform(points)
        if len(rows) < _FEW_POINTS:
            places[:, : min(2, width)] = reduced[:, :2]
        else:
            tsne = TSNE(
                perplexity=min(30.0, (len(rows) - 1) / 3),
                init="pca" if width > 1 else "random",
                random_state=seed,
                n_jobs=1,
            )
            places[:] = tsne.fit_transform(reduced)
    return rows, places

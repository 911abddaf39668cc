"""Measures of a semantic-ID vocabulary.

Owns the quality summary: collisions, what uniqueness cost, how evenly codes are used, and how well
they reconstruct. Knows arrays only; neither the quantizer nor the file it is kept in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.tokenizers.assign import Assignment, CodeArray
from genrec.tokenizers.sid_text import LEVEL_LETTERS
from genrec.types import FloatArray

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that the summary measures, before and after codes were made unique.

    Shapes:
        vectors: (N, D) float32, what was tokenized.
        raw: (N, L) int32, the quantizer's own codes.
        decoded_raw: (N, D) float32, vectors back from the raw codes.
        decoded: (N, D) float32, vectors back from the unique codes.
    """

    vectors: FloatArray
    raw: CodeArray
    assignment: Assignment
    codebook_sizes: tuple[int, ...]
    decoded_raw: FloatArray
    decoded: FloatArray


def measure_quality(vocabulary: Vocabulary) -> dict[str, Any]:
    """The summary that `quality.json` holds; every value a plain JSON value."""
    raw, assignment = vocabulary.raw, vocabulary.assignment
    cells = np.unique(raw, axis=0, return_counts=True)[1]
    n_moved = int(assignment.moved.sum())
    total = float(assignment.added_distance.sum())
    return {
        "schema": SCHEMA,
        "items": len(raw),
        "identical_vectors": len(raw) - len(np.unique(vocabulary.vectors, axis=0)),
        "collision_rate": {
            "before": measure_collisions(raw),
            "after": measure_collisions(assignment.codes),
        },
        "colliding_items": int(cells[cells > 1].sum()),
        "largest_collision": int(cells.max()),
        "moved": {
            "items": n_moved,
            "share": n_moved / len(raw),
            "spilled": int((raw[:, :-1] != assignment.codes[:, :-1]).any(axis=1).sum()),
            "added_distance_total": total,
            "added_distance_mean": total / n_moved if n_moved else 0.0,
        },
        "levels": [
            _measure_level(level, size, raw[:, level], assignment.codes[:, level])
            for level, size in enumerate(vocabulary.codebook_sizes)
        ],
        "reconstruction": {
            "before": measure_reconstruction(vocabulary.vectors, vocabulary.decoded_raw),
            "after": measure_reconstruction(vocabulary.vectors, vocabulary.decoded),
        },
    }


def measure_collisions(codes: CodeArray) -> float:
    """The share of items that would be lost if a code sequence named one item only.

    Source: 1 - unique/total, as LC-Rec (Zheng et al. 2024) counts it.
    """
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def measure_perplexity(counts: NDArray[np.int64]) -> float:
    """How many codes, used evenly, would carry as much: the exponential of the entropy in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _measure_level(
    level: int, size: int, raw: NDArray[np.int32], unique: NDArray[np.int32]
) -> dict[str, Any]:
    before, after = (np.bincount(codes, minlength=size) for codes in (raw, unique))
    return {
        "level": LEVEL_LETTERS[level],
        "codes": size,
        "used": int((after > 0).sum()),
        "utilisation": float((after > 0).mean()),
        "perplexity": measure_perplexity(after),
        "perplexity_before": measure_perplexity(before),
    }


def measure_reconstruction(vectors: FloatArray, decoded: FloatArray) -> dict[str, float]:
    """How near decoded vectors are to the true ones.

    `error` is the mean squared error of a value, `relative_error` the same as a share of the
    vectors' variance (1: no better than their mean), `cosine` the mean over items.
    """
    squares = ((vectors - decoded).astype(np.float64) ** 2).mean()
    variance = float(vectors.astype(np.float64).var(axis=0).mean())
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(decoded, axis=1)
    products = (vectors * decoded).sum(axis=1)
    cosine = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return {
        "error": float(squares),
        "relative_error": float(squares / variance) if variance > 0 else 0.0,
        "cosine": float(cosine.mean(dtype=np.float64)),
    }


def format_quality(quality: dict[str, Any]) -> str:
    """The summary as a small table for people."""
    collisions, moved = quality["collision_rate"], quality["moved"]
    after = quality["reconstruction"]["after"]
    lines = [
        f"{quality['items']:,} items, collisions {collisions['before']:.2%} before and "
        f"{collisions['after']:.2%} after; {moved['items']:,} items moved ({moved['share']:.2%}), "
        f"{moved['spilled']:,} of them to another prefix",
        f"reconstruction: cosine {after['cosine']:.4f}, "
        f"relative error {after['relative_error']:.4f}",
        "level  codes   used  utilisation  perplexity",
    ]
    rows: Sequence[dict[str, Any]] = quality["levels"]
    lines += [
        f"{row['level']:>5}  {row['codes']:>5}  {row['used']:>5}  {row['utilisation']:>11.1%}  "
        f"{row['perplexity']:>10.1f}"
        for row in rows
    ]
    return "\n".join(lines)

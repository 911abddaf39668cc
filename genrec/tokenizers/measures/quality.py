"""Measures of a semantic-ID vocabulary.

Owns the quality summary: collisions, what uniqueness cost, how evenly codes are used, and how well
they reconstruct. Knows of the quantizer only how it decodes, and nothing of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.tokenizers.measures.code_use import (
    count_groups,
    measure_perplexity,
    measure_use,
)
from genrec.tokenizers.quantizers.quantizer import Quantizer
from genrec.tokenizers.sid_text import LEVEL_LETTERS
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray
from genrec.tokenizers.vectors import VectorRows, read_chunks
from genrec.types import FloatArray, IndexArray

SCHEMA = 3
Decode = Callable[[CodeArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that the summary measures, before and after codes were made unique.

    Shapes:
        vectors: (N, D) float32 rows, what was tokenized; None where codes do not come from vectors.
        raw: (N, L) int32, the quantizer's own codes.
    """

    vectors: VectorRows | None
    raw: CodeArray
    assignment: Assignment
    quantizer: Quantizer


def measure_quality(vocabulary: Vocabulary) -> dict[str, Any]:
    """The summary that `quality.json` holds; every value a plain JSON value."""
    raw, assignment = vocabulary.raw, vocabulary.assignment
    cells, final = count_groups(raw), count_groups(assignment.codes)
    n_moved = int(assignment.moved.sum())
    total = float(assignment.added_distance.sum())
    return {
        "schema": SCHEMA,
        "items": len(raw),
        "identical_vectors": _count_identical(vocabulary.vectors),
        "collision_rate": {
            "before": 1.0 - len(cells) / len(raw),
            "after": 1.0 - len(final) / len(raw),
        },
        "colliding_items": int(cells[cells > 1].sum()),
        "largest_collision": int(cells.max()),
        "moved": {
            "items": n_moved,
            "share": n_moved / len(raw),
            "spilled": int((raw[:, :-1] != assignment.codes[:, : raw.shape[1] - 1]).any(1).sum()),
            "added_distance_total": total,
            "added_distance_mean": total / n_moved if n_moved else 0.0,
        },
        "levels": [
            _measure_level(level, size, raw, assignment.codes[:, level])
            for level, size in enumerate(assignment.codebook_sizes)
        ],
        "joint": {"before": _measure_joint(cells), "after": _measure_joint(final)},
        "reconstruction": _measure_both(vocabulary),
    }


def _count_identical(vectors: VectorRows | None) -> int:
    """How many vectors equal an earlier one, bit by bit, by digests of 64 bits.

    Ten million different vectors have two alike with a chance of 3 in a million.
    """
    if vectors is None:
        return 0
    digests = np.empty(len(vectors), dtype=np.uint64)
    for start, chunk in read_chunks(vectors):
        rows = chunk + 0.0  # -0.0 becomes 0.0
        joined = b"".join(blake2b(row, digest_size=8).digest() for row in rows)
        digests[start : start + len(rows)] = np.frombuffer(joined, dtype=np.uint64)
    return len(vectors) - len(np.unique(digests))


def _measure_both(vocabulary: Vocabulary) -> dict[str, dict[str, float]] | None:
    if vocabulary.vectors is None:
        return None
    unique = vocabulary.assignment.codes[:, : vocabulary.raw.shape[1]]
    decode = vocabulary.quantizer.decode_codes
    before = after = measure_reconstruction(vocabulary.vectors, vocabulary.raw, decode)
    if vocabulary.assignment.moved.any():  # a suffix moves none, and each pass reads every vector
        after = measure_reconstruction(vocabulary.vectors, unique, decode)
    return {"before": before, "after": after}


def _measure_level(
    level: int, size: int, raw: CodeArray, unique: NDArray[np.int32]
) -> dict[str, Any]:
    after = np.bincount(unique, minlength=size)
    # A suffix level is not the quantizer's.
    before = np.bincount(raw[:, level], minlength=size) if level < raw.shape[1] else after
    return {
        "level": name_level(level),
        **measure_use(after),
        "perplexity_before": measure_perplexity(before),
    }


def _measure_joint(cells: IndexArray) -> dict[str, float]:
    """The evenness of whole code sequences; the code space is too large to count the unused."""
    used = measure_use(cells)
    return {key: used[key] for key in ("used", "perplexity", "entropy_bits", "gini")}


def name_level(level: int) -> str:
    """The letter of a level, or its number where letters do not reach."""
    return LEVEL_LETTERS[level] if level < len(LEVEL_LETTERS) else str(level + 1)


def measure_reconstruction(
    vectors: VectorRows, codes: CodeArray, decode: Decode
) -> dict[str, float]:
    """How near decoded vectors are to the true ones; reads both chunk by chunk.

    `error` is the mean squared error of a value, `relative_error` the same as a share of the
    vectors' variance (1: no better than their mean), `cosine` the mean over items.
    """
    n, width = vectors.shape
    total, squares = np.zeros(width), np.zeros(width)
    error = cosine = 0.0
    shift = np.asarray(vectors[0:1], dtype=np.float64)  # near the mean, so squares do not cancel
    for start, chunk in read_chunks(vectors):
        decoded = decode(codes[start : start + len(chunk)])
        centred = chunk - shift
        total += centred.sum(axis=0)
        squares += (centred**2).sum(axis=0)
        error += float(((chunk - decoded).astype(np.float64) ** 2).sum())
        lengths = np.linalg.norm(chunk, axis=1) * np.linalg.norm(decoded, axis=1)
        products = (chunk * decoded).sum(axis=1)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        cosine += float(cosines.sum(dtype=np.float64))
    variance = float(np.maximum(squares / n - (total / n) ** 2, 0).mean())
    mean_error = error / (n * width)
    return {
        "error": mean_error,
        "relative_error": mean_error / variance if variance > 0 else 0.0,
        "cosine": cosine / n,
    }


def format_quality(quality: dict[str, Any]) -> str:
    """The summary as a small table for people."""
    collisions, moved = quality["collision_rate"], quality["moved"]
    lines = [
        f"{quality['items']:,} items, collisions {collisions['before']:.2%} before and "
        f"{collisions['after']:.2%} after; {moved['items']:,} items moved ({moved['share']:.2%}), "
        f"{moved['spilled']:,} of them to another prefix",
        *_format_reconstruction(quality["reconstruction"]),
        "level  codes   used  utilisation  perplexity",
    ]
    rows: Sequence[dict[str, Any]] = quality["levels"]
    lines += [
        f"{row['level']:>5}  {row['codes']:>5}  {row['used']:>5}  {row['utilisation']:>11.1%}  "
        f"{row['perplexity']:>10.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def _format_reconstruction(measured: dict[str, dict[str, float]] | None) -> list[str]:
    if measured is None:
        return []
    after = measured["after"]
    return [
        f"reconstruction: cosine {after['cosine']:.4f}, "
        f"relative error {after['relative_error']:.4f}"
    ]

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from genrec.tokenizers.measures.quality import (
    Vocabulary,
    format_quality,
    measure_quality,
    measure_reconstruction,
    name_level,
)
from genrec.tokenizers.uniqueness.assign import Assignment
from genrec.tokenizers.vectors import ShardedVectors

RAW = np.array([[0, 0], [0, 0], [0, 0], [1, 1]], dtype=np.int32)
UNIQUE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)
VECTORS = np.array([[1, 0], [1, 0], [0, 1], [0, -1]], dtype=np.float32)


@dataclass
class Table:
    """Decodes a code sequence to the row of a table that it is listed at."""

    decoded: dict[tuple[int, ...], list[float]]

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        return np.array([self.decoded[tuple(row)] for row in codes.tolist()], dtype=np.float32)


def make_vocabulary(vectors: np.ndarray | None = VECTORS) -> Vocabulary:
    moved = np.array([False, True, True, False])
    added = np.array([0.0, 0.5, 1.5, 0.0])
    table = Table({(0, 0): [1, 0], (0, 1): [1, 0], (1, 0): [0, 1], (1, 1): [0, -1]})
    return Vocabulary(vectors, RAW, Assignment(UNIQUE, moved, added, (4, 2)), table)


def test_the_summary_counts_what_uniqueness_cost() -> None:
    quality = measure_quality(make_vocabulary())
    assert quality["schema"] == 3
    assert quality["items"] == 4
    assert quality["identical_vectors"] == 1
    assert quality["collision_rate"] == {"before": 0.5, "after": 0.0}
    assert quality["colliding_items"] == 3
    assert quality["largest_collision"] == 3
    assert quality["moved"] == {
        "items": 2,
        "share": 0.5,
        "spilled": 1,
        "added_distance_total": 2.0,
        "added_distance_mean": 1.0,
    }


def test_levels_are_measured_before_and_after() -> None:
    first, last = measure_quality(make_vocabulary())["levels"]
    assert (first["level"], first["codes"], first["used"], first["dead"]) == ("a", 4, 2, 2)
    assert first["utilisation"] == 0.5
    assert first["perplexity"] == pytest.approx(2.0)
    assert first["entropy_bits"] == pytest.approx(1.0)
    assert first["gini"] == pytest.approx(0.5)
    assert first["perplexity_before"] == pytest.approx(4 / 3**0.75)
    assert last["perplexity"] == pytest.approx(2.0)


def test_whole_sequences_are_measured_too() -> None:
    joint = measure_quality(make_vocabulary())["joint"]
    assert joint["after"] == {"used": 4, "perplexity": 4.0, "entropy_bits": 2.0, "gini": 0.0}
    assert joint["before"]["used"] == 2
    assert joint["before"]["gini"] == pytest.approx(0.25)


def test_reconstruction_is_that_of_both_codes() -> None:
    both = measure_quality(make_vocabulary())["reconstruction"]
    assert both["after"]["error"] == 0.0
    assert both["before"]["error"] == pytest.approx(0.25)


def test_codes_without_vectors_have_no_reconstruction() -> None:
    quality = measure_quality(make_vocabulary(vectors=None))
    assert quality["reconstruction"] is None
    assert quality["identical_vectors"] == 0
    assert "reconstruction" not in format_quality(quality)


def test_the_summary_is_json_and_prints_as_a_table() -> None:
    quality = measure_quality(make_vocabulary())
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    table = format_quality(quality)
    assert "collisions 50.00% before and 0.00% after; 2 items moved (50.00%), 1 of them" in table
    assert "    a      4      2        50.0%         2.0" in table


def test_a_suffix_level_counts_as_the_quantizers_own() -> None:
    codes = np.array([[0, 0], [0, 1]], dtype=np.int32)
    still = np.zeros(2)
    assignment = Assignment(codes, still.astype(bool), still, (2, 2))
    vocabulary = Vocabulary(None, codes[:, :1], assignment, Table({}))
    quality = measure_quality(vocabulary)
    assert quality["levels"][1]["perplexity_before"] == quality["levels"][1]["perplexity"]
    assert quality["moved"]["added_distance_mean"] == 0.0


def test_identical_vectors_are_found_across_shards_and_zero_signs() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9_000, 4)).astype(np.float32)
    rows[8_999] = rows[3]
    rows[7] = 0.0
    rows[8] = -0.0
    shards = ShardedVectors([rows[:5_000], rows[5_000:]])
    codes = np.arange(9_000, dtype=np.int32)[:, None]
    still = np.zeros(9_000)
    assignment = Assignment(codes, still.astype(bool), still, (9_000,))
    table = Table({(code,): [0.0] * 4 for code in range(9_000)})
    quality = measure_quality(Vocabulary(shards, codes, assignment, table))
    assert quality["identical_vectors"] == 2


def test_reconstruction_is_relative_to_the_variance() -> None:
    vectors = np.array([[2.0, 0.0], [-2.0, 0.0]], dtype=np.float32)
    codes = np.zeros((2, 1), dtype=np.int32)
    to_mean = Table({(0,): [0.0, 0.0]}).decode_codes
    assert measure_reconstruction(vectors, codes, to_mean) == {
        "error": 2.0,
        "relative_error": 1.0,
        "cosine": 0.0,
    }
    same = np.ones((3, 2), dtype=np.float32)
    off = Table({(0,): [2.0, 2.0]}).decode_codes
    measured = measure_reconstruction(same, np.zeros((3, 1), dtype=np.int32), off)
    assert measured["relative_error"] == 0.0
    assert measured["cosine"] == pytest.approx(1.0)


def test_levels_beyond_the_alphabet_have_numbers() -> None:
    assert (name_level(0), name_level(25), name_level(26)) == ("a", "z", "27")

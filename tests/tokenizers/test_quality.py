from __future__ import annotations

import json

import numpy as np
import pytest

from genrec.tokenizers.assign import Assignment
from genrec.tokenizers.quality import (
    Vocabulary,
    format_quality,
    measure_collisions,
    measure_perplexity,
    measure_quality,
    measure_reconstruction,
)


def make_vocabulary() -> Vocabulary:
    raw = np.array([[0, 0], [0, 0], [0, 0], [1, 1]], dtype=np.int32)
    unique = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, -1]], dtype=np.float32)
    return Vocabulary(
        vectors=vectors,
        raw=raw,
        assignment=Assignment(
            unique, np.array([False, True, True, False]), np.array([0.0, 0.5, 1.5, 0.0])
        ),
        codebook_sizes=(4, 2),
        decoded_raw=vectors,
        decoded=-vectors,
    )


def test_the_summary_counts_what_uniqueness_cost() -> None:
    quality = measure_quality(make_vocabulary())
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
    assert (first["level"], first["codes"], first["used"]) == ("a", 4, 2)
    assert first["utilisation"] == 0.5
    assert first["perplexity"] == pytest.approx(2.0)
    assert first["perplexity_before"] == pytest.approx(4 / 3**0.75)
    assert last["perplexity"] == pytest.approx(2.0)


def test_the_summary_is_json_and_prints_as_a_table() -> None:
    quality = measure_quality(make_vocabulary())
    assert json.loads(json.dumps(quality)) == quality
    table = format_quality(quality)
    assert "collisions 50.00% before and 0.00% after; 2 items moved (50.00%), 1 of them" in table
    assert "    a      4      2        50.0%         2.0" in table


def test_no_move_costs_nothing() -> None:
    codes = np.array([[0], [1]], dtype=np.int32)
    vectors = np.eye(2, dtype=np.float32)
    still = Assignment(codes, np.zeros(2, dtype=bool), np.zeros(2))
    quality = measure_quality(Vocabulary(vectors, codes, still, (2,), vectors, vectors))
    assert quality["moved"]["added_distance_mean"] == 0.0
    assert quality["reconstruction"]["after"]["cosine"] == pytest.approx(1.0)


def test_perplexity_is_the_number_of_evenly_used_codes() -> None:
    assert measure_perplexity(np.array([5, 5, 5, 0])) == pytest.approx(3.0)
    assert measure_perplexity(np.array([7, 0])) == pytest.approx(1.0)


def test_collision_rate_is_the_share_of_lost_items() -> None:
    assert measure_collisions(np.zeros((4, 2), dtype=np.int32)) == 0.75
    assert measure_collisions(np.arange(4, dtype=np.int32)[:, None]) == 0.0


def test_reconstruction_is_relative_to_the_variance() -> None:
    vectors = np.array([[2.0, 0.0], [-2.0, 0.0]], dtype=np.float32)
    mean = np.zeros_like(vectors)
    assert measure_reconstruction(vectors, mean) == {
        "error": 2.0,
        "relative_error": 1.0,
        "cosine": 0.0,
    }
    assert measure_reconstruction(vectors, vectors)["cosine"] == pytest.approx(1.0)
    same = np.ones((3, 2), dtype=np.float32)
    assert measure_reconstruction(same, same + 1)["relative_error"] == 0.0

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from genrec.tokenizers.measures import neighbours as module
from genrec.tokenizers.measures.neighbours import (
    Neighbours,
    correlate_ranks,
    find_neighbours,
    measure_neighbours,
)

from .conftest import plant_clusters


def test_neighbours_are_those_of_an_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", 37)
    vectors = plant_clusters(200, noise=1.0)
    found = find_neighbours(vectors, k=5, max_queries=50)
    assert found is not None
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(vectors)
    distance, rows = search.kneighbors(vectors[found.queries])
    assert rows[:, 0].tolist() == found.queries.tolist()
    assert found.nearest.tolist() == rows[:, 1:].tolist()
    np.testing.assert_allclose(found.similarity, 1 - distance[:, 1:], atol=1e-5)


def test_the_sample_is_seeded_and_rising() -> None:
    vectors = plant_clusters(100)
    first, again, other = (find_neighbours(vectors, max_queries=20, seed=s) for s in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.queries.tolist() == again.queries.tolist() == sorted(first.queries.tolist())
    assert first.strangers.tolist() == again.strangers.tolist()
    assert first.queries.tolist() != other.queries.tolist()


def test_the_sample_shrinks_with_very_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PRODUCTS", 1_000)
    monkeypatch.setattr(module, "_MIN_QUERIES", 5)
    found = find_neighbours(plant_clusters(100))
    assert found is not None
    assert len(found.queries) == 10


def test_items_without_a_direction_are_left_out() -> None:
    vectors = plant_clusters(50)
    vectors[[3, 30]] = 0.0
    found = find_neighbours(vectors)
    assert found is not None
    assert not {3, 30} & {*found.queries.tolist(), *found.nearest.ravel().tolist()}
    assert not {3, 30} & set(found.strangers.ravel().tolist())
    assert np.isfinite(found.similarity).all()


def test_an_item_is_no_neighbour_and_no_stranger_of_its_own() -> None:
    found = find_neighbours(plant_clusters(12), k=10)
    assert found is not None
    assert not (found.nearest == found.queries[:, None]).any()
    assert not (found.strangers == found.queries[:, None]).any()


@pytest.mark.parametrize("n_items", [1, 2])
def test_too_few_items_have_no_neighbours(n_items: int) -> None:
    assert find_neighbours(np.ones((n_items, 3), dtype=np.float32)) is None
    assert find_neighbours(np.zeros((9, 3), dtype=np.float32)) is None


def test_measures_of_a_case_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)
    found = Neighbours(
        queries=np.array([0, 2]),
        nearest=np.array([[1], [0]]),
        similarity=np.array([[0.9], [0.8]], dtype=np.float32),
        strangers=np.array([[3], [1]]),
        strange_similarity=np.array([[0.1], [0.2]], dtype=np.float32),
    )
    first, second = measure_neighbours(codes, found)["prefixes"]
    assert first["recall"] == 0.5
    assert first["chance"] == pytest.approx(1 / 3)
    assert first["ceiling"] == 1.0
    assert first["agreement"] == pytest.approx((1 / 2 - 1 / 3) / (2 / 3))
    assert (second["recall"], second["chance"], second["agreement"]) == (0.0, 0.0, None)


def test_the_rank_correlation_is_that_of_scipy() -> None:
    vectors = plant_clusters(150, noise=0.5)
    codes = np.stack([np.arange(150) % 8, np.arange(150) // 8 % 3], axis=1).astype(np.int32)
    found = find_neighbours(vectors, max_queries=150)
    assert found is not None
    shared, near = [], []
    for row, query in enumerate(found.queries):
        for partner in [*found.nearest[row], *found.strangers[row]]:
            same = codes[query] == codes[partner]
            shared.append(0 if not same[0] else 1 + int(same[1]))
            a, b = vectors[query], vectors[partner]
            near.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    expected = spearmanr(shared, near).statistic
    measured = measure_neighbours(codes, found)["rank_correlation"]
    assert measured == pytest.approx(expected, abs=1e-3)


def test_a_perfect_vocabulary_beats_a_mixed_one_beats_a_random_one() -> None:
    vectors = plant_clusters(400, n_clusters=8)
    perfect = (np.arange(400) % 8)[:, None].astype(np.int32)
    rng = np.random.default_rng(0)
    mixed = np.where(rng.random(400) < 0.5, perfect[:, 0], rng.integers(8, size=400))[:, None]
    found = find_neighbours(vectors)
    assert found is not None
    agreements = [
        measure_neighbours(codes.astype(np.int32), found)["prefixes"][0]["agreement"]
        for codes in (perfect, mixed, rng.permutation(perfect))
    ]
    assert agreements[0] == pytest.approx(1.0)
    assert agreements[0] > agreements[1] > agreements[2]
    assert abs(agreements[2]) < 0.05


def test_large_groups_win_nothing_by_their_size() -> None:
    vectors = plant_clusters(300, noise=1.0)
    rng = np.random.default_rng(0)
    found = find_neighbours(vectors)
    assert found is not None
    for n_codes in (2, 30):
        codes = rng.integers(n_codes, size=(300, 1)).astype(np.int32)
        row = measure_neighbours(codes, found)["prefixes"][0]
        assert abs(row["agreement"]) < 0.05
    one = np.zeros((300, 1), dtype=np.int32)
    measured = measure_neighbours(one, found)
    assert measured["prefixes"][0]["agreement"] is None
    assert measured["rank_correlation"] is None


def test_values_that_do_not_vary_have_no_correlation() -> None:
    assert correlate_ranks(np.ones(4), np.arange(4)) is None
    assert correlate_ranks(np.arange(1), np.arange(1)) is None
    assert correlate_ranks(np.arange(4), -np.arange(4)) == pytest.approx(-1.0)

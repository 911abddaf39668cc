from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import DataError, RecipeError, UnknownItemError
from genrec.eval.baselines import BASELINES, Markov, Popularity
from tests.contracts.recommender_contract import RecommenderContract

N_ITEMS = 12


def arrays(*sequences):
    return [np.array(sequence, dtype=np.int64) for sequence in sequences]


def random_sequences(n_items=N_ITEMS, n_users=30, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_items, size=rng.integers(0, 8)) for _ in range(n_users)]


class TestPopularityContract(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def system(cls):
        return Popularity.fit(random_sequences(), N_ITEMS)


class TestMarkovContract(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def system(cls):
        return Markov.fit(random_sequences(), N_ITEMS)


class TestSparseMarkovContract(RecommenderContract):
    """Few transitions, so that most answers are filled in."""

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls):
        return Markov.fit(arrays([0, 1], [2, 3, 0]), 40, ties="random", seed=3)


def test_popularity_counts_over_all_sequences():
    system = Popularity.fit(arrays([0, 2, 2], [], [2, 1, 0]), 4)
    ranked = system.rank_items(arrays([3]), 3)
    assert ranked.item_index.tolist() == [[2, 0, 1]]
    assert ranked.scores.tolist() == [[3.0, 2.0, 1.0]]
    assert ranked.certified.all()


def test_popularity_orders_ties_by_seed():
    sequences = arrays(range(200))
    lists = [
        Popularity.fit(sequences, 200, seed=seed).rank_items(arrays([0]), 50).item_index.tolist()
        for seed in (0, 0, 1)
    ]
    assert lists[0] == lists[1] != lists[2]


def brute_markov(sequences, n_items, history, *, window, decay, weights):
    table = np.zeros((n_items, n_items))
    for sequence in sequences:
        for place, item in enumerate(sequence):
            for distance in range(1, window + 1):
                if place + distance < len(sequence):
                    table[item, sequence[place + distance]] += decay ** (distance - 1)
    table /= table.sum(axis=1, keepdims=True) + 1
    return sum(weight * table[item] for weight, item in zip(weights, history[::-1], strict=False))


@pytest.mark.parametrize("window", [1, 3])
def test_markov_scores_equal_those_counted_by_hand(window):
    weights = (1.0, 0.5, 0.33, 0.25, 0.2)
    sequences, histories = random_sequences(), arrays([3], [1, 4, 4], [0, 1, 2, 3, 4, 5, 6])
    system = Markov.fit(sequences, N_ITEMS, window=window, decay=0.5)
    ranked = system.rank_items(histories, N_ITEMS, exclude_seen=False)
    for row, history in enumerate(histories):
        expected = brute_markov(
            sequences, N_ITEMS, history, window=window, decay=0.5, weights=weights
        )
        np.testing.assert_allclose(ranked.scores[row], expected[ranked.item_index[row]], rtol=1e-6)


def test_markov_never_counts_across_two_sequences():
    system = Markov.fit(arrays([0, 1], [2, 3]), 4, query_weights=[1.0])
    ranked = system.rank_items(arrays([1]), 3)
    assert (ranked.scores == 0).all()


def test_markov_breaks_ties_and_fills_up_by_popularity():
    sequences = arrays([0, 1], [0, 2], [2], [2], [3], [3])
    system = Markov.fit(sequences, 5)
    assert system.rank_items(arrays([0]), 4).item_index.tolist() == [[2, 1, 3, 4]]


def test_markov_breaks_ties_at_random_by_seed():
    sequences = arrays([0, *range(1, 100)])
    systems = [Markov.fit(sequences, 100, ties="random", seed=seed) for seed in (0, 0, 1)]
    lists = [system.rank_items(arrays([99]), 20).item_index.tolist() for system in systems]
    assert lists[0] == lists[1] != lists[2]


def test_a_sequence_shorter_than_the_window_counts_what_it_has():
    system = Markov.fit(arrays([0, 1]), 3, window=5, query_weights=[1.0])
    ranked = system.rank_items(arrays([0]), 1)
    assert ranked.item_index.tolist() == [[1]]
    assert ranked.scores.tolist() == [[0.5]]


@pytest.mark.parametrize("fit", BASELINES.values(), ids=BASELINES)
def test_nothing_to_count_is_refused(fit):
    with pytest.raises(DataError, match="no training interactions to count"):
        fit(arrays([], []), 3)


@pytest.mark.parametrize("fit", BASELINES.values(), ids=BASELINES)
def test_an_unknown_item_in_training_is_named(fit):
    with pytest.raises(UnknownItemError, match=r"a training sequence holds item_index 7.*0\.\.2"):
        fit(arrays([0, 7]), 3)


@pytest.mark.parametrize(("window", "decay"), [(0, 0.5), (1, 0.0), (1, 1.5)])
def test_markov_refuses_a_window_or_decay_that_means_nothing(window, decay):
    with pytest.raises(RecipeError, match="the window must be at least 1 and the decay above 0"):
        Markov.fit(arrays([0, 1]), 3, window=window, decay=decay)

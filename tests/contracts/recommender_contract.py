"""What every `RanksItems` must do, whoever wrote it: the Recommender, the baselines, yours.

Use it by subclassing in a test module, with a fixture `system` that gives the one under test:

    class TestMyModel(RecommenderContract):
        @pytest.fixture(scope="class")
        @classmethod
        def system(cls):
            return MyModel.fit(...)

The catalogue must hold at least 8 items; small is better, since the whole of it is ranked.
"""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import CapacityError, DataError, UnknownItemError
from genrec.types import IndexArray, RankedItems, RanksItems

SCORE_TOLERANCE = 1e-4


def make_histories(n_items: int, n_users: int = 5, longest: int = 5) -> list[IndexArray]:
    """Histories of 1 to `longest` items, one of them with an item chosen twice."""
    rng = np.random.default_rng(7)
    lengths = [1 + user % longest for user in range(n_users)]
    histories = [rng.choice(n_items, size=length, replace=False) for length in lengths]
    histories[-1] = np.append(histories[-1], histories[-1][0])
    return [history.astype(np.int64) for history in histories]


def assert_same_ranking(first: RankedItems, second: RankedItems) -> None:
    """The same answers, and scores equal but for rounding."""
    np.testing.assert_array_equal(first.item_index, second.item_index)
    np.testing.assert_allclose(
        first.scores, second.scores, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE
    )


class RecommenderContract:
    """Tests to inherit; each needs only the fixture `system`."""

    k = 5

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls) -> RanksItems:
        raise NotImplementedError("a subclass gives the system under test")

    @pytest.fixture(scope="class")
    @classmethod
    def histories(cls, system: RanksItems) -> list[IndexArray]:
        return make_histories(system.n_items)

    def test_contract_meets_the_protocol(self, system):
        assert isinstance(system, RanksItems)
        assert system.name and isinstance(system.name, str)
        assert system.n_items >= 8

    def test_contract_shapes_and_types(self, system, histories):
        ranked = system.rank_items(histories, self.k)
        assert ranked.item_index.shape == ranked.scores.shape == (len(histories), self.k)
        assert ranked.certified.shape == (len(histories),)
        assert ranked.item_index.dtype == np.int64
        assert ranked.scores.dtype == np.float32
        assert ranked.certified.dtype == np.bool_

    def test_contract_answers_are_distinct_items_of_the_catalogue(self, system, histories):
        for answers in system.rank_items(histories, self.k).item_index:
            assert len(set(answers.tolist())) == self.k
            assert answers.min() >= 0
            assert answers.max() < system.n_items

    def test_contract_scores_fall_along_the_list(self, system, histories):
        scores = system.rank_items(histories, self.k).scores
        assert np.isfinite(scores).all()
        assert (np.diff(scores, axis=1) <= 0).all()

    def test_contract_batch_equals_single(self, system, histories):
        together = system.rank_items(histories, self.k)
        for row, history in enumerate(histories):
            alone = system.rank_items([history], self.k)
            np.testing.assert_array_equal(alone.item_index[0], together.item_index[row])
            np.testing.assert_allclose(
                alone.scores[0],
                together.scores[row],
                rtol=SCORE_TOLERANCE,
                atol=SCORE_TOLERANCE,
            )

    def test_contract_order_of_users_does_not_matter(self, system, histories):
        forward = system.rank_items(histories, self.k)
        backward = system.rank_items(histories[::-1], self.k)
        np.testing.assert_array_equal(forward.item_index, backward.item_index[::-1])

    def test_contract_same_question_same_answer(self, system, histories):
        first = system.rank_items(histories, self.k)
        second = system.rank_items(histories, self.k)
        np.testing.assert_array_equal(first.item_index, second.item_index)
        np.testing.assert_array_equal(first.scores, second.scores)

    def test_contract_leaves_the_histories_as_they_were(self, system, histories):
        before = [history.copy() for history in histories]
        system.rank_items(histories, self.k)
        for history, copy in zip(histories, before, strict=True):
            np.testing.assert_array_equal(history, copy)

    def test_contract_seen_items_are_left_out(self, system, histories):
        ranked = system.rank_items(histories, self.k)
        for history, answers in zip(histories, ranked.item_index, strict=True):
            assert not set(history.tolist()) & set(answers.tolist())

    def test_contract_seen_items_come_back_when_asked_for(self, system, histories):
        ranked = system.rank_items(histories, system.n_items, exclude_seen=False)
        for answers in ranked.item_index:
            assert sorted(answers.tolist()) == list(range(system.n_items))

    def test_contract_all_unseen_items_can_be_had(self, system, histories):
        history = histories[0]
        unseen = sorted(set(range(system.n_items)) - set(history.tolist()))
        ranked = system.rank_items([history], len(unseen))
        assert sorted(ranked.item_index[0].tolist()) == unseen

    def test_contract_fewer_unseen_items_than_k_end_in_nothing(self, system, histories):
        ranked = system.rank_items(histories, system.n_items)
        for history, answers, scores in zip(
            histories, ranked.item_index, ranked.scores, strict=True
        ):
            n_unseen = system.n_items - len(set(history.tolist()))
            assert (answers[:n_unseen] >= 0).all()
            assert (answers[n_unseen:] == -1).all()
            assert (scores[n_unseen:] == -np.inf).all()

    def test_contract_a_history_of_everything_has_no_answer(self, system):
        everything = np.arange(system.n_items, dtype=np.int64)
        ranked = system.rank_items([everything], 2)
        assert (ranked.item_index == -1).all()
        assert (ranked.scores == -np.inf).all()

    def test_contract_nobody_asked_nothing_answered(self, system):
        ranked = system.rank_items([], self.k)
        assert ranked.item_index.shape == ranked.scores.shape == (0, self.k)
        assert ranked.certified.shape == (0,)

    def test_contract_k_above_the_catalogue_names_both(self, system, histories):
        k = system.n_items + 1
        with pytest.raises(CapacityError, match=rf"(?s){k}.*{system.n_items}"):
            system.rank_items(histories, k)

    @pytest.mark.parametrize("k", [0, -3])
    def test_contract_k_below_one_is_refused(self, system, histories, k):
        with pytest.raises(CapacityError, match=rf"{k}"):
            system.rank_items(histories, k)

    def test_contract_an_empty_history_is_refused(self, system, histories):
        empty = np.empty(0, dtype=np.int64)
        with pytest.raises(DataError, match="empty"):
            system.rank_items([histories[0], empty], self.k)

    @pytest.mark.parametrize("past_the_end", [True, False])
    def test_contract_an_index_outside_the_catalogue_is_named(self, system, past_the_end):
        outside = system.n_items if past_the_end else -1
        with pytest.raises(UnknownItemError, match=rf"{outside}\b"):
            system.rank_items([np.array([0, outside], dtype=np.int64)], self.k)

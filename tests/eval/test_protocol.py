from __future__ import annotations

import numpy as np
import pytest

from genrec.data.dataset import HoldOut
from genrec.errors import CapacityError, DataError
from genrec.eval.metrics import Metric
from genrec.eval.protocol import (
    Question,
    evaluate_systems,
    find_valid,
    sample_users,
    score_ranking,
    take_rankings,
    take_users,
)
from genrec.types import RankedItems

HR2, MRR3 = Metric("HR", 2), Metric("MRR", 3)


def arrays(*lists):
    return [np.array(items, dtype=np.int64) for items in lists]


def make_question(histories, targets, *, n_items=10, metrics=(HR2, MRR3), exclude_seen=True):
    users = np.arange(len(histories)) + 100
    return Question(
        HoldOut(users, arrays(*histories), arrays(*targets), 0, 0), n_items, metrics, exclude_seen
    )


def make_ranking(rows):
    item_index = np.array(rows, dtype=np.int64)
    scores = np.where(item_index == -1, -np.inf, 0.0).astype(np.float32)
    return RankedItems(item_index, scores, np.ones(len(rows), dtype=np.bool_))


class Canned:
    """Answers with rows prepared beforehand, in the order of the calls."""

    n_items = 10

    def __init__(self, rows, name="canned"):
        self.name = name
        self._rows = list(rows)
        self.asked = []

    def rank_items(self, histories, k, *, exclude_seen=True):
        self.asked.append((len(histories), k, exclude_seen))
        rows, self._rows = self._rows[: len(histories)], self._rows[len(histories) :]
        return make_ranking(rows)


def test_every_user_is_asked_about_in_batches():
    question = make_question([[0], [1], [2]], [[5], [6], [7]])
    system = Canned([[5, 1, 2], [2, 0, 6], [0, 1, 3]])
    (result,) = evaluate_systems(question, [system], batch_size=2)
    assert system.asked == [(2, 3, True), (1, 3, True)]
    assert result.name == "canned"
    assert result.scores[HR2].tolist() == [1, 0, 0]
    assert result.scores[MRR3].tolist() == [1, 1 / 3, 0]
    assert result.target_rank.tolist() == [1, 3, 0]
    assert result.valid_rate == 1.0
    assert result.seconds >= 0


def test_whether_seen_items_are_allowed_is_passed_on():
    question = make_question([[0]], [[0]], exclude_seen=False)
    system = Canned([[0, 1, 2]])
    (result,) = evaluate_systems(question, [system])
    assert system.asked == [(1, 3, False)]
    assert result.scores[HR2].tolist() == [1]
    assert result.valid_rate == 1.0


def test_invalid_answers_keep_their_place_and_never_score():
    question = make_question([[0, 1]] * 4, [[0], [5], [5], [5]])
    rows = [[0, 1, 5], [10, -2, 5], [5, 5, 5], [4, -1, -1]]
    result = score_ranking(question, "broken", make_ranking(rows))
    assert result.target_rank.tolist() == [0, 3, 1, 0]
    assert (result.n_valid, result.n_answers) == (4, 10)
    assert result.valid_rate == pytest.approx(0.4)
    assert result.seconds is None


def test_find_valid_marks_real_distinct_allowed_items():
    ranked = np.array([[3, 0, 3, 9], [-1, 10, 1, 2]])
    histories = arrays([0], [2])
    assert find_valid(ranked, histories, 10, True).tolist() == [
        [True, False, False, True],
        [False, False, True, False],
    ]
    assert find_valid(ranked, histories, 10, False).tolist() == [
        [True, True, False, True],
        [False, False, True, True],
    ]


def test_a_system_without_answers_scores_zero():
    question = make_question([[0], [1]], [[5], [6]])
    (result,) = evaluate_systems(question, [Canned([[-1, -1, -1]] * 2)])
    assert result.scores[HR2].tolist() == [0, 0]
    assert (result.n_answers, result.valid_rate) == (0, 0.0)


def test_known_rankings_come_last_and_may_be_short():
    question = make_question([[0], [1]], [[5], [6]])
    known = {"oracle": make_ranking([[5], [2]])}
    results = evaluate_systems(question, [Canned([[1, 2, 3], [0, 2, 3]])], known=known)
    assert [result.name for result in results] == ["canned", "oracle"]
    assert results[1].scores[HR2].tolist() == [1, 0]
    assert results[1].seconds is None


def test_several_targets_rank_the_first_found():
    question = make_question([[0]], [[8, 3]])
    (result,) = evaluate_systems(question, [Canned([[1, 3, 8]])])
    assert result.target_rank.tolist() == [2]


def test_a_sample_of_users_is_seeded_and_in_order():
    holdout = make_question([[i] for i in range(9)], [[5]] * 9).holdout
    rows = sample_users(holdout, 4, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 4
    assert rows.tolist() == sample_users(holdout, 4, seed=1).tolist()
    assert rows.tolist() != sample_users(holdout, 4, seed=2).tolist()
    assert sample_users(holdout, None, seed=1).tolist() == list(range(9))
    assert sample_users(holdout, 99, seed=1).tolist() == list(range(9))


def test_taking_users_keeps_their_rows_together():
    holdout = make_question([[0], [1], [2]], [[5], [6], [7]]).holdout
    taken = take_users(holdout, np.array([0, 2]))
    assert taken.user_index.tolist() == [100, 102]
    assert [history.tolist() for history in taken.histories] == [[0], [2]]
    assert [targets.tolist() for targets in taken.targets] == [[5], [7]]


def test_taking_rankings_keeps_rows_and_cuts_them():
    taken = take_rankings(make_ranking([[1, 2], [3, 4], [5, 6]]), np.array([0, 2]), 1)
    assert taken.item_index.tolist() == [[1], [5]]
    assert taken.scores.shape == (2, 1)
    assert taken.certified.shape == (2,)


def test_nobody_to_evaluate_is_refused():
    with pytest.raises(DataError, match="nothing to evaluate; check the split"):
        evaluate_systems(make_question([], []), [Canned([])])


def test_a_cutoff_above_the_catalogue_names_both():
    question = make_question([[0]], [[1]], n_items=2)
    with pytest.raises(CapacityError, match="cut off at 3, but the catalogue has 2 items"):
        evaluate_systems(question, [])


def test_two_systems_of_one_name_and_another_catalogue_are_refused_at_once():
    question = make_question([[0]], [[1]], n_items=11)
    message = "(?s)2 systems are called 'canned'.*canned ranks a catalogue of 10 items, .* 11"
    with pytest.raises(DataError, match=message):
        evaluate_systems(question, [Canned([]), Canned([])])


def test_an_answer_of_the_wrong_shape_is_refused():
    question = make_question([[0]], [[1]])
    with pytest.raises(DataError, match=r"canned answered with item_index \(1, 2\)"):
        evaluate_systems(question, [Canned([[1, 2]])])

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError, RecipeError
from genrec.eval.metrics import (
    Metric,
    find_hits,
    find_rank,
    hit_rate,
    ndcg,
    pad_lists,
    recall,
    reciprocal_rank,
    score_users,
)

NAMES = ("HR", "Recall", "NDCG", "MRR")


def random_case(rng, *, n_users=40, n_items=30, width=12, most_targets=5):
    ranked = np.stack([rng.permutation(n_items)[:width] for _ in range(n_users)])
    for row in range(n_users):  # some lists are short, and one in a while is empty
        ranked[row, rng.integers(0, width + 1) :] = -1 if row % 3 == 0 else ranked[row, -1]
        if row % 3:
            ranked[row] = rng.permutation(n_items)[:width]
    targets = [
        rng.choice(n_items, size=rng.integers(1, most_targets + 1), replace=False)
        for _ in range(n_users)
    ]
    return ranked, targets


def test_one_target_by_hand():
    ranked = np.array([[3, 1, 2], [3, 1, 2], [3, 1, 2], [-1, -1, -1]])
    relevant = np.array([[3], [2], [9], [3]])
    assert hit_rate(ranked, relevant, 2).tolist() == [1, 0, 0, 0]
    assert hit_rate(ranked, relevant, 3).tolist() == [1, 1, 0, 0]
    assert recall(ranked, relevant, 3).tolist() == [1, 1, 0, 0]
    assert ndcg(ranked, relevant, 3).tolist() == [1, 0.5, 0, 0]
    assert reciprocal_rank(ranked, relevant, 3).tolist() == [1, 1 / 3, 0, 0]
    assert find_rank(ranked, relevant).tolist() == [1, 3, 0, 0]


def test_several_targets_by_hand():
    ranked = np.array([[5, 6, 7, 8]])
    relevant = np.array([[8, 6, 99, -1]])
    ideal = 1 + 1 / math.log2(3) + 0.5
    assert hit_rate(ranked, relevant, 4).tolist() == [1]
    assert recall(ranked, relevant, 4) == pytest.approx([2 / 3])
    assert recall(ranked, relevant, 2) == pytest.approx([1 / 3])
    assert ndcg(ranked, relevant, 4) == pytest.approx(
        [(1 / math.log2(3) + 1 / math.log2(5)) / ideal]
    )
    assert ndcg(ranked, relevant, 1) == pytest.approx([0])
    assert reciprocal_rank(ranked, relevant, 4) == pytest.approx([0.5])


def test_a_repeated_answer_counts_once():
    ranked = np.array([[4, 4, 4]])
    relevant = np.array([[4, 7]])
    assert find_hits(ranked, relevant).tolist() == [[True, False, False]]
    assert recall(ranked, relevant, 3).tolist() == [0.5]


def test_a_repeated_target_counts_once():
    ranked = np.array([[4, 1]])
    relevant = np.array([[4, 4, -1]])
    assert recall(ranked, relevant, 2).tolist() == [1.0]
    assert ndcg(ranked, relevant, 2).tolist() == [1.0]


def test_padding_never_hits():
    ranked = np.full((2, 3), -1)
    relevant = np.array([[-1, 2], [0, -1]])
    assert not find_hits(ranked, relevant).any()


def test_lists_without_places_hold_no_hit():
    empty = np.empty((2, 0), dtype=np.int64)
    assert find_hits(empty, np.array([[1], [2]])).shape == (2, 0)
    assert find_rank(empty, np.array([[1], [2]])).tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated:UserWarning")
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_ir_measures_on_random_cases(seed):
    ir_measures = pytest.importorskip("ir_measures")
    theirs = {"HR": "Success", "Recall": "R", "NDCG": "nDCG", "MRR": "RR"}
    ranked, targets = random_case(np.random.default_rng(seed))
    metrics = [Metric(name, k) for name in NAMES for k in (1, 3, 5, 10)]
    ours = score_users(ranked, pad_lists(targets), metrics)
    qrels = [
        ir_measures.Qrel(str(user), str(item), 1)
        for user, items in enumerate(targets)
        for item in items
    ]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), -float(place))
        for user, items in enumerate(ranked)
        for place, item in enumerate(items)
        if item >= 0
    ]
    measures = {ir_measures.parse_measure(f"{theirs[m.name]}@{m.k}"): m for m in metrics}
    compared = 0
    for row in ir_measures.iter_calc(list(measures), qrels, run):
        value = ours[measures[row.measure]][int(row.query_id)]
        assert value == pytest.approx(row.value, abs=1e-9)
        compared += 1
    assert compared >= len(metrics) * (len(targets) - 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_values_stay_between_0_and_1_and_grow_with_k(seed):
    ranked, targets = random_case(np.random.default_rng(seed), n_users=8)
    relevant = pad_lists(targets)
    for name in NAMES:
        values = [
            score_users(ranked, relevant, [Metric(name, k)])[Metric(name, k)] for k in (1, 4, 12)
        ]
        assert all((0 <= v).all() and (v <= 1 + 1e-12).all() for v in values)
        if name != "NDCG":  # with several targets the ideal grows with k too
            assert (values[0] <= values[1]).all()
            assert (values[1] <= values[2]).all()


def test_one_target_makes_recall_the_hit_rate_and_bounds_the_rest():
    rng = np.random.default_rng(0)
    ranked, _ = random_case(rng)
    relevant = rng.integers(0, 30, size=(len(ranked), 1))
    hr, mrr, gain = (f(ranked, relevant, 10) for f in (hit_rate, reciprocal_rank, ndcg))
    np.testing.assert_array_equal(recall(ranked, relevant, 10), hr)
    assert (mrr <= gain + 1e-12).all()
    assert (gain <= hr + 1e-12).all()


def test_many_users_are_scored_in_blocks(monkeypatch):
    ranked, targets = random_case(np.random.default_rng(3))
    whole = find_hits(ranked, pad_lists(targets))
    monkeypatch.setattr("genrec.eval.metrics._USERS_AT_ONCE", 7)
    np.testing.assert_array_equal(find_hits(ranked, pad_lists(targets)), whole)


def test_pad_lists():
    lists = [np.array([1, 2]), np.array([], dtype=np.int64), np.array([3])]
    assert pad_lists(lists).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert pad_lists([]).shape == (0, 1)
    assert pad_lists([np.array([], dtype=np.int64)]).tolist() == [[-1]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 10, 500])
def test_a_metric_prints_as_it_parses(name, k):
    metric = Metric.parse(f"{name}@{k}")
    assert str(metric) == f"{name}@{k}"
    assert Metric.parse(str(metric)) == metric
    assert hash(Metric.parse(str(metric))) == hash(metric)


@pytest.mark.parametrize(
    ("text", "printed"),
    [("nDCG@10", "NDCG@10"), (" hr@5 ", "HR@5"), ("R@20", "Recall@20"), ("RR@3", "MRR@3")],
)
def test_other_spellings_are_understood(text, printed):
    assert str(Metric.parse(text)) == printed


def test_metrics_compare_and_serve_as_keys():
    first, second = Metric("HR", 5), Metric("HR", 10)
    assert first < second
    assert {first: 1, Metric("HR", 5): 2} == {first: 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NDGC@10", r"'NDGC@10' is not known; did you mean NDCG@10\?"),
        ("HR", "written NAME@k"),
        ("HR@0", "k a whole number from 1"),
        ("HR@-1", "k a whole number from 1"),
        ("HR@ten", "k a whole number from 1"),
        ("HR@٣", "k a whole number from 1"),
        ("@10", "one of HR, Recall, NDCG, MRR"),
    ],
)
def test_a_text_that_is_no_metric_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        Metric.parse(text)


def test_a_metric_cannot_be_made_of_nonsense():
    with pytest.raises(RecipeError, match="'Luck@3' is not known"):
        Metric("Luck", 3)
    with pytest.raises(RecipeError, match="'HR@0' is not known"):
        Metric("HR", 0)


def test_a_user_without_a_target_is_refused():
    with pytest.raises(DataError, match="1 of 2 users have no target"):
        hit_rate(np.array([[1], [2]]), np.array([[1], [-1]]), 1)


def test_rankings_shorter_than_the_cutoff_are_refused():
    with pytest.raises(DataError, match="2 long, too short for a cutoff of 5"):
        hit_rate(np.array([[1, 2]]), np.array([[1]]), 5)


def test_rankings_and_targets_of_other_users_are_refused():
    with pytest.raises(DataError, match="2 rankings cannot be scored against 1 users"):
        hit_rate(np.array([[1], [2]]), np.array([[1]]), 1)

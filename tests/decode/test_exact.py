"""Exact search: against the truth, and honest where it gives up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.exact import OpenPrefixes, Prefixes
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from tests.contracts.engine_contract import EVERY_NORMALIZE, assert_same_answers
from tests.decode.made_searches import Driver, made_searches, rank_truly, score_items


def make_prefixes(*rows):
    """Prefixes of (user, level, node, score)."""
    user, level, node, score = (np.array(column) for column in zip(*rows, strict=True))
    return Prefixes(user, node, node, node, score.astype(np.float32), level)


def make_flat(n_users=1, n_codes=8, n_levels=4):
    """A full tree in which every child is as likely."""
    table = np.indices((n_codes,) * n_levels).reshape(n_levels, -1).T
    trie = Trie.from_codes(table)
    gain = np.float32(-np.log(n_codes))
    return trie, Driver([np.full((n_users, size), gain) for size in trie.level_sizes[1:]])


@settings(max_examples=60, deadline=None)
@given(made_searches(), st.integers(0, 10))
def test_exact_answers_are_the_true_ones(made, extra):
    trie, driver, filters, k = made
    ranked = driver.rank(trie, k, Search(width=k + extra, exact=True), filters)
    assert ranked.certified.all()
    truth = score_items(trie, driver.gains)
    for user, wanted in enumerate(filters):
        best = rank_truly(truth[user], wanted, k)
        assert ranked.item_index[user].tolist() == best.tolist()
        assert ranked.scores[user].tolist() == truth[user, best].tolist()
        assert ranked.bound[user] < ranked.scores[user, -1]
        asked = [(level, node) for level, node, _ in driver.asked[user]]
        assert len(asked) == len(set(asked)) == ranked.evaluations[user]


@settings(max_examples=30, deadline=None)
@given(made_searches(), st.integers(1, 60))
def test_a_search_that_gives_up_says_what_it_did_not_see(made, most):
    trie, driver, filters, k = made
    beams = driver.rank(trie, k, Search(width=k), filters)
    ranked = driver.rank(trie, k, Search(width=k, exact=True, max_evaluations=most), filters)
    assert (ranked.evaluations <= np.maximum(most, beams.evaluations)).all()
    assert (ranked.scores[:, -1] >= beams.scores[:, -1]).all()
    truth = score_items(trie, driver.gains)
    for user, wanted in enumerate(filters):
        best = rank_truly(truth[user], wanted, trie.n_items)
        missed = best[~np.isin(best, ranked.item_index[user])]
        limit = max(ranked.bound[user], ranked.scores[user, -1])
        assert not len(missed) or truth[user, missed].max() <= limit
        if ranked.certified[user]:
            assert ranked.item_index[user].tolist() == best[:k].tolist()
        else:
            assert ranked.evaluations[user] >= most, "it gives up for no other reason"
            assert ranked.bound[user] >= ranked.scores[user, -1]


@settings(max_examples=30, deadline=None)
@given(made_searches())
def test_no_prefix_is_asked_about_that_cannot_matter(made):
    trie, driver, filters, k = made
    plain = driver.rank(trie, k, Search(width=k), filters)
    n_beams = [len(asked) for asked in driver.asked]
    driver.rank(trie, k, Search(width=k, exact=True), filters)
    for user, asked in enumerate(driver.asked):
        assert all(score >= plain.scores[user, -1] for _, _, score in asked[n_beams[user] :])


def test_equal_items_behind_an_equal_prefix_are_looked_at():
    # Item 1 is certain and so is item 0, whose prefix one beam leaves out.
    trie = Trie.from_codes([[1, 0], [0, 0]])
    driver = Driver([np.zeros((1, size), dtype=np.float32) for size in trie.level_sizes[1:]])
    beam = driver.rank(trie, 1, Search(width=1))
    assert beam.item_index.tolist() == [[1]] and not beam.certified[0]
    exact = driver.rank(trie, 1, Search(width=1, exact=True))
    assert exact.item_index.tolist() == [[0]] and exact.certified[0]


def test_a_flat_distribution_is_not_certified_at_the_cap():
    trie, driver = make_flat(n_users=2)
    ranked = driver.rank(trie, 10, Search(exact=True, max_evaluations=80))
    assert not ranked.certified.any()
    assert ranked.evaluations.tolist() == [80, 80]
    np.testing.assert_allclose(ranked.bound, -2 * np.log(8), rtol=1e-6)
    assert driver.rank(trie, 10, Search(exact=True, max_evaluations=1000)).certified.all()


def test_users_who_are_done_are_asked_nothing_more():
    trie, driver = make_flat(n_users=2)
    for level, gains in enumerate(driver.gains):
        gains[0] = -20.0
        gains[0, :: 8**level] = np.float32(-0.01)  # one item is nearly certain
    ranked = driver.rank(trie, 1, Search(width=5, exact=True))
    assert ranked.certified.all()
    assert ranked.evaluations[0] < 30 and ranked.evaluations[1] > 500


def test_the_level_that_most_wait_for_comes_first_and_others_keep_their_turn():
    open_ = OpenPrefixes(3)
    none, much = np.full(3, -np.inf, dtype=np.float32), np.full(3, 99)
    open_.add(make_prefixes((2, 1, 7, -1), (0, 2, 4, -2), (0, 1, 3, -1), (1, 2, 5, -1)))
    first = open_.choose(none, much)
    assert (first.user.tolist(), first.node.tolist()) == ([0, 2], [3, 7])
    second = open_.choose(none, much)
    assert (second.user.tolist(), second.level.tolist()) == ([0, 1], [2, 2])
    assert open_.choose(none, much) is None and (open_.bound == -np.inf).all()


def test_equal_prefixes_are_taken_deepest_first():
    open_ = OpenPrefixes(1)
    open_.add(make_prefixes((0, 1, 0, -1), (0, 2, 9, -1), (0, 2, 8, -1)))
    chosen = open_.choose(np.array([-1.0]), np.array([5]))
    assert chosen.node.tolist() == [8, 9]
    assert open_.choose(np.array([-0.5]), np.array([5])) is None
    assert open_.bound.tolist() == [-1.0], "what was dropped is remembered"


def test_at_most_sixteen_are_asked_about_at_once_and_no_more_than_are_left():
    open_ = OpenPrefixes(2)
    rows = [(user, 1, node, -node) for user in (0, 1) for node in range(40)]
    open_.add(make_prefixes(*rows))
    chosen = open_.choose(np.full(2, -99.0), np.array([30, 3]))
    assert np.bincount(chosen.user).tolist() == [16, 3]
    chosen = open_.choose(np.full(2, -99.0), np.array([14, 0]))
    assert chosen.node.tolist() == list(range(16, 30))
    assert open_.choose(np.full(2, -99.0), np.array([0, 0])) is None
    assert open_.bound.tolist() == [-30, -3]


@pytest.fixture(scope="module")
def masks(codes):
    rng = np.random.default_rng(5)
    return [
        ItemFilter(rng.choice(len(codes), 10), rng.random(len(codes)) < share)
        for share in (0.9, 0.6, 0.5, 0.8, 0.7)
    ]


@EVERY_NORMALIZE
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "bloom"])
def test_engines_are_exact_on_a_whole_catalogue(
    architecture, normalize, make_model, codes, token_ids, prompts, masks
):
    engine = TorchEngine(make_model(architecture), Trie.from_codes(codes), token_ids)
    for filters in (None, masks):
        k = 6
        found = engine.rank_prompts(prompts, k, Search(k, normalize, exact=True), filters=filters)
        wide = engine.rank_prompts(prompts, k, Search(len(codes), normalize), filters=filters)
        assert found.certified.all() and wide.certified.all()
        assert_same_answers(found, wide)


def test_exact_answers_do_not_depend_on_the_batch(qwen3, codes, token_ids, prompts):
    search = Search(5, exact=True, max_evaluations=60)
    engines = [
        TorchEngine(qwen3, Trie.from_codes(codes), token_ids, batch_tokens=size)
        for size in (1, 10**6)
    ]
    alone, together = (engine.rank_prompts(prompts, 5, search) for engine in engines)
    assert_same_answers(alone, together)
    np.testing.assert_array_equal(alone.evaluations, together.evaluations)

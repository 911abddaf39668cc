"""Groups of beams: against the definition, and full lists of real items whatever they reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.diverse import split_evenly
from genrec.decode.engine import Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import CapacityError
from tests.contracts.engine_contract import assert_same_answers, assert_valid, exclude
from tests.decode.made_searches import Driver, made_searches, rank_truly, score_items


def search_by_definition(trie, driver, user, legal, sizes, penalty):
    """The leaves that each group reaches, with their scores: loops over dictionaries."""
    times, reached = {}, []
    for size in sizes:
        beams = {0: np.float32(0)}
        for level in range(trie.n_levels):
            found = {}
            for node, score in beams.items():
                for child in trie.expand(level, np.array([node])).node.tolist():
                    if any(leaf in legal for leaf in range(*list_leaves(trie, level + 1, child))):
                        found[child] = score + driver.gains[level][user, child]
            if level == trie.n_levels - 1:
                beams = found
                break
            lost = {node: np.float32(penalty) * times.get(node, 0) for node in found}
            worth = {node: found[node] - (lost[node] if not level else 0) for node in found}
            kept = sorted(found, key=lambda node: (-worth[node], node))[:size]
            if not level:
                for node in kept:
                    times[node] = times.get(node, 0) + 1
            beams = {node: found[node] for node in kept}
        reached.append({int(trie.order[leaf]): score for leaf, score in beams.items()})
    return reached


def list_leaves(trie, level, node):
    first, end = trie.leaf_ranges(level, np.array([node]))
    return int(first[0]), int(end[0])


def share_out(reached, k):
    """The items that are answered, from what each group reached."""
    chosen = []
    for found, size in zip(reached, split_evenly(k, len(reached)), strict=True):
        best = sorted(set(found) - set(chosen), key=lambda item: (-found[item], item))
        chosen += best[:size]
    everything = {item: score for found in reached for item, score in found.items()}
    rest = sorted(set(everything) - set(chosen), key=lambda item: (-everything[item], item))
    return chosen + rest[: k - len(chosen)]


@settings(max_examples=40, deadline=None)
@given(made_searches(), st.integers(0, 8), st.integers(1, 6), st.sampled_from([0.0, 0.3, 9.0]))
def test_groups_follow_the_definition(made, extra, groups, penalty):
    trie, driver, filters, k = made
    width = min(max(k, 2) + extra, trie.n_items)
    groups = min(groups + 1, width)
    search = Search(max(width, k), groups=groups, diversity=penalty)
    ranked = driver.rank(trie, k, search, filters)
    assert_valid(ranked, trie.n_items)
    truth = score_items(trie, driver.gains)
    for user, wanted in enumerate(filters):
        answers = ranked.item_index[user]
        assert ranked.scores[user].tolist() == truth[user, answers].tolist(), "no penalty in scores"
        best = rank_truly(truth[user], wanted, trie.n_items)
        assert np.isin(answers, best).all()
        if ranked.certified[user]:
            assert answers.tolist() == best[:k].tolist()
        if groups > 1:
            legal = set(trie.leaves[best].tolist())
            sizes = split_evenly(search.width, groups)
            reached = search_by_definition(trie, driver, user, legal, sizes, penalty)
            expected = share_out(reached, k)
            assert set(expected) <= set(answers.tolist())
            assert len(expected) == k or len(set().union(*reached)) == len(expected)


@settings(max_examples=30, deadline=None)
@given(made_searches(), st.floats(0, 5))
def test_one_group_is_plain_search(made, penalty):
    trie, driver, filters, k = made
    plain = driver.rank(trie, k, Search(width=k + 2), filters)
    grouped = driver.rank(trie, k, Search(width=k + 2, groups=1, diversity=penalty), filters)
    assert_same_answers(plain, grouped)


def make_steep():
    """8 first codes, each with 16 items; any item of code 0 is likelier than any of code 1, ..."""
    trie = Trie.from_codes(np.indices((8, 4, 4)).reshape(3, -1).T)
    gains = [-np.arange(size, dtype=np.float32)[None] for size in trie.level_sizes[1:]]
    return trie, Driver([gains[0] * 4, gains[1] % 4 - 3, gains[2] % 4 - 3])


def test_a_penalty_spreads_the_list_over_first_codes():
    trie, driver = make_steep()
    plain = driver.rank(trie, 8, Search(width=8))
    assert set(plain.item_index[0] // 16) == {0}
    without = driver.rank(trie, 8, Search(width=8, groups=4))
    spread = driver.rank(trie, 8, Search(width=8, groups=4, diversity=100.0))
    # Two beams a group: without a penalty all groups begin with codes 0 and 1.
    assert {level_node[1] for level_node in driver_first_codes(driver)} == set(range(8))
    assert set(spread.item_index[0] // 16) == {0, 2, 4, 6}, (
        "each group's best are of its first code"
    )
    assert set(without.item_index[0] // 16) == {0}
    assert not spread.certified[0] and spread.bound[0] > spread.scores[0, -1]


def driver_first_codes(driver):
    return {(level, node) for level, node, _ in driver.asked[0] if level == 1}


def test_a_prefix_that_several_groups_hold_is_asked_about_once():
    trie, driver = make_steep()
    driver.rank(trie, 4, Search(width=8, groups=4))
    assert len(driver.asked[0]) == len(set(driver.asked[0])) == 1 + 2 + 2


def test_lists_are_full_when_groups_reach_too_few():
    # Code 0 is the best and has one item; all groups of one beam take it.
    codes = [[0, 0, 0], *([1, second, third] for second in range(5) for third in range(4))]
    trie = Trie.from_codes(codes)
    driver = Driver([np.zeros((2, size), dtype=np.float32) for size in trie.level_sizes[1:]])
    driver.gains[0][:, 1] = -3
    driver.gains[0][1] = driver.gains[0][1, ::-1]  # the second user's groups reach four
    ranked = driver.rank(trie, 4, Search(width=4, groups=4))
    assert_valid(ranked, trie.n_items)
    assert ranked.item_index.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert ranked.scores.tolist() == [[0, -3, -3, -3], [0, 0, 0, 0]]
    assert ranked.evaluations[0] > ranked.evaluations[1] == 3


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "bloom"])
def test_engines_give_diverse_lists(architecture, make_model, codes, token_ids, prompts):
    engine = TorchEngine(make_model(architecture), Trie.from_codes(codes), token_ids)
    excluded = [np.arange(user, len(codes), 7) for user in range(len(prompts))]
    search = Search(12, groups=6, diversity=2.0)
    plain, diverse = (
        engine.rank_prompts(prompts, 12, each, filters=exclude(excluded))
        for each in (Search(12), search)
    )
    assert_valid(diverse, len(codes))
    whole = engine.rank_prompts(prompts, len(codes))
    for user, banned in enumerate(excluded):
        items = diverse.item_index[user]
        assert not np.isin(items, banned).any()
        place = np.argsort(whole.item_index[user])[items]
        np.testing.assert_allclose(diverse.scores[user], whole.scores[user, place], atol=1e-5)
    n_first = [
        np.mean([len(np.unique(codes[items, 0])) for items in ranked.item_index])
        for ranked in (plain, diverse)
    ]
    assert n_first[1] > n_first[0]


def test_groups_must_have_a_beam_each(qwen3, codes, token_ids, prompts):
    engine = TorchEngine(qwen3, Trie.from_codes(codes), token_ids)
    with pytest.raises(CapacityError, match=r"groups=6 cannot share width=5 beams; use at most 5"):
        engine.rank_prompts(prompts, 5, Search(5, groups=6))


@pytest.mark.parametrize(("total", "n_groups"), [(7, 3), (6, 3), (2, 4)])
def test_groups_differ_by_one_at_most(total, n_groups):
    sizes = split_evenly(total, n_groups)
    assert sum(sizes) == total and len(sizes) == n_groups
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)

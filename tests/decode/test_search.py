"""The search by itself: what it asks, what it proves, and that no answer is ever invalid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request
from genrec.decode.search import search_items
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from tests.contracts.engine_contract import assert_valid
from tests.decode.made_searches import Driver, made_searches, rank_truly, score_items


@settings(max_examples=40, deadline=None)
@given(made_searches(), st.integers(0, 60))
def test_certified_answers_are_the_true_ones(made, extra):
    trie, driver, filters, k = made
    ranked = driver.rank(trie, k, Search(width=k + extra), filters)
    assert_valid(ranked, trie.n_items)
    truth = score_items(trie, driver.gains)
    for user, wanted in enumerate(filters):
        best = rank_truly(truth[user], wanted, trie.n_items)
        answers = ranked.item_index[user]
        assert ranked.scores[user].tolist() == truth[user, answers].tolist()
        assert ranked.evaluations[user] == len(driver.asked[user])
        missed = best[~np.isin(best, answers)]
        limit = max(ranked.bound[user], ranked.scores[user, -1])
        assert not len(missed) or truth[user, missed].max() <= limit
        if ranked.certified[user]:
            assert answers.tolist() == best[:k].tolist()
    if k + extra >= trie.n_items:
        assert ranked.certified.all()


@settings(max_examples=20, deadline=None)
@given(made_searches())
def test_users_do_not_see_each_other(made):
    trie, driver, filters, k = made
    for search in (Search(k + 1), Search(k + 1, exact=True), Search(k + 1, groups=2, diversity=1)):
        if search.groups > min(k + 1, trie.n_items):
            continue
        together = driver.rank(trie, k, search, filters)
        for user, wanted in enumerate(filters):
            alone = Driver([gains[user : user + 1] for gains in driver.gains])
            ranked = alone.rank(trie, k, search, [wanted])
            assert ranked.item_index[0].tolist() == together.item_index[user].tolist()
            assert ranked.certified[0] == together.certified[user]
            assert ranked.bound[0] == together.bound[user]


SEARCHES = (
    Search(100),
    Search(100, groups=7, diversity=1.0),
    Search(100, exact=True, max_evaluations=600),
)


def draw_filters(rng, n_users, n_items):
    """Some users exclude a few, some nearly all, and some are left one part of the catalogue."""
    masks = [rng.random(n_items) < share for share in (0.05, 0.5)]
    sizes = rng.choice([0, 10, n_items - 200], n_users, p=[0.45, 0.45, 0.1])
    return [
        ItemFilter(rng.choice(n_items, size, replace=False))
        if size or user % 3
        else ItemFilter(allowed=masks[user % 2])
        for user, size in enumerate(sizes.tolist())
    ]


def answer_uniformly(trie, n_users, k, search, filters):
    """The answers where every child is as likely, so that all depends on how ties are broken."""
    request = check_request(EngineLimits(trie.n_items, 2), [[1]] * n_users, k, search, filters)
    dialogue = search_items(trie, request)
    question = next(dialogue)
    while True:
        try:
            question = dialogue.send(torch.full((len(question.code),), -1.0))
        except StopIteration as end:
            return end.value


def assert_legal(ranked, filters, n_items):
    assert_valid(ranked, n_items)
    for items, wanted in zip(ranked.item_index, filters, strict=True):
        assert not np.isin(items, wanted.excluded).any()
        assert wanted.allowed is None or wanted.allowed[items].all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_uniform_search_gives_legal_items_only(search):
    rng = np.random.default_rng(1)
    trie = Trie.from_codes(np.unique(rng.integers(0, 12, (2000, 4)), axis=0))
    filters = draw_filters(rng, 50, trie.n_items)
    ranked = answer_uniformly(trie, 50, 20, search, filters)
    assert_legal(ranked, filters, trie.n_items)


@pytest.mark.slow
def test_no_answer_of_a_million_is_invalid():
    n_answers = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        fan_out, n_levels = int(rng.integers(8, 40)), int(rng.integers(3, 7))
        codes = np.unique(rng.zipf(1.2, (60_000, n_levels)) % fan_out, axis=0)
        if len(codes) < 2000:
            codes = np.unique(rng.integers(0, fan_out, (20_000, n_levels + 1)), axis=0)
        trie = Trie.from_codes(rng.permutation(codes)[:2500])
        filters = draw_filters(rng, 900, trie.n_items)
        ranked = answer_uniformly(trie, 900, 50, SEARCHES[seed % 3], filters)
        assert_legal(ranked, filters, trie.n_items)
        n_answers += ranked.item_index.size
    assert n_answers >= 1_000_000


@pytest.mark.slow
def test_no_answer_of_a_uniform_model_is_invalid(make_model, codes, token_ids):
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    rng = np.random.default_rng(0)
    prompts = [[int(token)] for token in rng.integers(0, 300, 2500)]
    filters = [ItemFilter(rng.choice(len(codes), int(size))) for size in rng.integers(0, 60, 2500)]
    for search in (Search(20), Search(20, groups=4, diversity=0.5)):
        ranked = engine.rank_prompts(prompts, 20, search, filters=filters)
        assert ranked.item_index.size == 50_000
        assert_legal(ranked, filters, len(codes))

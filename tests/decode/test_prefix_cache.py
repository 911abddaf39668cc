"""Prompts whose beginnings are known: the same answers, fewer tokens run, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.decode.engine import Search
from genrec.decode.prefix_cache import PrefixCache, PrefixStats
from genrec.decode.soft_users import SoftUsers, attach_users
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import CapacityError
from tests.contracts.engine_contract import EngineContract, assert_same_answers

PLENTY = 1 << 24


def open_engine(model, codes, token_ids, **words):
    return TorchEngine(model, Trie.from_codes(codes), token_ids, **words)


def draw_prompts(seed, lengths, shared=0):
    rng = np.random.default_rng(seed)
    head = np.random.default_rng(99).integers(0, 200, shared).tolist()
    return [head + rng.integers(0, 200, length).tolist() for length in lengths]


class TestTorchEngineWithPrefixes(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, qwen3, codes, token_ids):
        engine = open_engine(qwen3, codes, token_ids)
        engine.keep_prefixes(PLENTY)
        return engine

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls):
        return draw_prompts(5, [9, 40, 3, 60, 17], shared=20)


# Run lean, with one window, with two kinds of layers, and with positions that are embedded.
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "gemma3", "gpt2"])
def test_answers_are_those_without(architecture, make_model, codes, token_ids):
    model = make_model(architecture)
    plain = open_engine(model, codes, token_ids)
    keeping = open_engine(model, codes, token_ids, way=plain.way)
    keeping.keep_prefixes(PLENTY)
    requests = [
        draw_prompts(0, [30, 12, 70], shared=18),
        draw_prompts(1, [1, 44, 90], shared=18),  # others that share the instruction
        [[*prompt, 7, 8, 9] for prompt in draw_prompts(0, [30, 12, 70], shared=18)],  # return
    ]
    search = Search(width=5)
    for prompts in requests:
        expected = plain.rank_prompts(prompts, 5, search)
        assert_same_answers(keeping.rank_prompts(prompts, 5, search), expected)
    assert keeping.prefix_stats.saved_tokens > 100
    assert plain.prefix_stats == PrefixStats()


def test_a_returning_user_runs_only_what_is_new(qwen3, codes, token_ids, monkeypatch):
    engine = open_engine(qwen3, codes, token_ids)
    engine.keep_prefixes(PLENTY)
    (prompt,) = draw_prompts(0, [100])
    engine.rank_prompts([prompt], 5)
    assert engine.prefix_stats.misses == 1 and engine.prefix_stats.hits == 0
    run = []
    layer = qwen3.model.layers[0].input_layernorm
    hook = layer.register_forward_hook(lambda _m, given, _out: run.append(given[0].shape[1]))
    engine.rank_prompts([[*prompt, 3, 4]], 5)
    hook.remove()
    # 6 whole blocks of 16 are known of 100 tokens.
    assert run[0] == 102 - 96
    stats = engine.prefix_stats
    assert (stats.hits, stats.misses, stats.saved_tokens) == (1, 1, 96)


def test_one_long_unknown_prompt_does_not_make_the_known_ones_run(qwen3, codes, token_ids):
    engine = open_engine(qwen3, codes, token_ids)
    engine.keep_prefixes(PLENTY)
    known = draw_prompts(0, [100, 90])
    engine.rank_prompts(known, 5)
    engine.rank_prompts([*known, *draw_prompts(1, [100])], 5)
    assert engine.prefix_stats.saved_tokens >= 2 * 80


def test_the_same_request_twice_is_certified_alike(qwen3, codes, token_ids):
    engine = open_engine(qwen3, codes, token_ids)
    engine.keep_prefixes(PLENTY)
    prompts = draw_prompts(3, [80, 41, 17])
    first, second = (engine.rank_prompts(prompts, 5, Search(width=60)) for _ in range(2))
    assert_same_answers(first, second)
    np.testing.assert_allclose(first.bound, second.bound, atol=1e-5)


def test_memory_is_bounded_and_the_least_used_goes_first(qwen3, codes, token_ids):
    engine = open_engine(qwen3, codes, token_ids)
    # A block: 2 layers, keys and values, 2 heads, 16 tokens, 8 wide, 4 bytes.
    block = 2 * 2 * 2 * 16 * 8 * 4
    engine.keep_prefixes(8 * block + 1)
    first, second, third = draw_prompts(0, [50, 50, 50])  # 3 blocks each
    for prompt in (first, second, first, third):
        engine.rank_prompts([prompt], 5)
        assert engine.prefix_stats.stored_bytes <= 8 * block
    assert engine.prefix_stats.stored_bytes == 8 * block
    saved = engine.prefix_stats.saved_tokens
    engine.rank_prompts([first], 5)
    assert engine.prefix_stats.saved_tokens == saved + 48, "used last but one, so kept whole"
    engine.rank_prompts([second], 5)
    assert engine.prefix_stats.saved_tokens < saved + 48 + 48, "its last block made room"
    engine.keep_prefixes(0)
    assert engine.prefix_stats == PrefixStats()


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(CapacityError, match="of -5 bytes holds nothing; give it more, or 0"):
        PrefixCache(-5)


def test_what_an_adapter_made_is_not_given_to_another(make_model, codes, token_ids, monkeypatch):
    model = make_model("qwen3")
    engine = open_engine(model, codes, token_ids)
    engine.keep_prefixes(PLENTY)
    prompts = draw_prompts(0, [60])
    engine.rank_prompts(prompts, 5)

    class Switched:
        current = "other"

    monkeypatch.setattr("genrec.decode.prefix_cache.find_adapters", lambda _: Switched)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(-1)
    fresh = open_engine(model, codes, token_ids)
    assert_same_answers(engine.rank_prompts(prompts, 5), fresh.rank_prompts(prompts, 5))
    assert engine.prefix_stats.hits == 0


def test_a_model_that_copies_its_prompts_keeps_nothing(make_model, codes, token_ids):
    engine = open_engine(make_model("bloom"), codes, token_ids)
    engine.keep_prefixes(PLENTY)
    prompts = draw_prompts(0, [60])
    first, second = (engine.rank_prompts(prompts, 5) for _ in range(2))
    assert_same_answers(first, second)
    assert engine.prefix_stats == PrefixStats()


def test_an_engine_for_other_items_goes_on_with_what_is_known(qwen3, codes, token_ids):
    engine = open_engine(qwen3, codes, token_ids)
    engine.keep_prefixes(PLENTY)
    prompts = draw_prompts(0, [60])
    engine.rank_prompts(prompts, 5)
    other = engine.replace_trie(Trie.from_codes(codes[:50]))
    other.rank_prompts(prompts, 5)
    assert other.prefix_stats.hits == 1


def test_prompts_with_soft_user_tokens_run_whole(make_model, codes, token_ids):
    model, mark = make_model("qwen3"), 299
    users = SoftUsers(6, 2, 32, mark)
    attach_users(model, users)
    way = open_engine(model, codes, token_ids).way
    plain, keeping = (open_engine(model, codes, token_ids, way=way) for _ in range(2))
    keeping.keep_prefixes(PLENTY)
    prompts = [[mark, mark, *prompt] for prompt in draw_prompts(0, [40, 40], shared=20)]
    prompts += draw_prompts(0, [50])
    for seed in (0, 1):
        vectors = np.random.default_rng(seed).normal(size=(3, 6)).astype(np.float32)
        expected = plain.rank_prompts(prompts, 5, user_vectors=vectors)
        found = keeping.rank_prompts(prompts, 5, user_vectors=vectors)
        assert_same_answers(found, expected)
    assert keeping.prefix_stats.saved_tokens <= 48

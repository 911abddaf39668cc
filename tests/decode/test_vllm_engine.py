"""The vLLM engine over a stand-in for vLLM: contract, equality, batches, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.decode.engine import Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.decode.vllm_engine import VllmEngine
from genrec.errors import DataError, ModelError
from tests.contracts.engine_contract import EVERY_NORMALIZE, EngineContract
from tests.decode.fake_vllm import LLM, install_vllm


@pytest.fixture(scope="module", autouse=True)
def _vllm():
    with install_vllm():
        yield


@pytest.fixture(scope="module")
def trie(codes):
    return Trie.from_codes(codes)


@pytest.fixture
def engine(qwen3, trie, token_ids):
    return VllmEngine(LLM(qwen3), trie, token_ids)


class TestVllmEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, qwen3, trie, token_ids):
        return VllmEngine(LLM(qwen3), trie, token_ids)


@EVERY_NORMALIZE
@pytest.mark.parametrize("plugin", [True, False])
def test_equals_the_embedded_engine(qwen3, trie, token_ids, prompts, plugin, normalize):
    search = Search(width=20, normalize=normalize)
    ours = VllmEngine(LLM(qwen3, plugin=plugin), trie, token_ids).rank_prompts(prompts, 10, search)
    theirs = TorchEngine(qwen3, trie, token_ids).rank_prompts(prompts, 10, search)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_allclose(ours.bound, theirs.bound, atol=1e-4)
    np.testing.assert_array_equal(ours.evaluations, theirs.evaluations)


def test_a_level_of_many_codes_is_asked_for_in_parts(make_model, prompts):
    model = make_model("qwen3", vocab_size=700)
    codes = np.stack([np.arange(300), np.arange(300) % 7], axis=1)
    token_ids = [np.arange(300, 600), np.arange(600, 607)]
    llm = LLM(model, plugin=False)
    engine = VllmEngine(llm, Trie.from_codes(codes), token_ids)
    llm.batches.clear()
    ranked = engine.rank_prompts(prompts[:2], 5, Search(width=5))
    assert [len(batch) for batch in llm.batches] == [2 * 3, 2 * 5]
    plain = TorchEngine(model, engine.trie, token_ids).rank_prompts(prompts[:2], 5, Search(width=5))
    np.testing.assert_array_equal(ranked.item_index, plain.item_index)


def test_a_step_is_a_request_for_each_live_beam(engine, prompts):
    llm = engine.llm
    llm.batches.clear()
    ranked = engine.rank_prompts(prompts, 5, Search(width=6))
    assert sum(map(len, llm.batches)) == ranked.evaluations.sum()
    assert len(llm.batches) == 4
    assert [row[: len(p)] for row, p in zip(llm.batches[0], prompts, strict=True)] == prompts


def test_prompts_that_the_cache_cannot_hold_run_in_turn(engine, prompts):
    whole = engine.rank_prompts(prompts, 5)
    cache = engine.llm.llm_engine.vllm_config.cache_config
    cache.num_gpu_blocks = 4  # room for two prompts of one block each
    engine.llm.batches.clear()
    in_turn = engine.rank_prompts(prompts, 5)
    assert [len(batch) for batch in engine.llm.batches[::4]] == [2, 2, 1]
    np.testing.assert_array_equal(whole.item_index, in_turn.item_index)
    assert engine.block_tokens == 16


def test_each_prompt_has_its_adapter(qwen3, make_model, trie, token_ids, prompts):
    llm = LLM(qwen3)
    llm.adapters = {name: make_model("qwen3", seed=seed) for seed, name in ((1, "a"), (2, "b"))}
    engine = VllmEngine(llm, trie, token_ids, {"a": "lora/a", "b": "lora/b"})
    assert engine.adapters == ("a", "b")
    names = ["a", None, "b", None, "a"]
    ranked = engine.rank_prompts(prompts, 5, adapters=names)
    for row, name in enumerate(names):
        model = llm.adapters[name] if name else qwen3
        alone = TorchEngine(model, trie, token_ids).rank_prompts([prompts[row]], 5)
        np.testing.assert_array_equal(ranked.item_index[row], alone.item_index[0])


def test_unknown_adapters_are_refused(qwen3, trie, token_ids, prompts):
    engine = VllmEngine(LLM(qwen3), trie, token_ids, {"books": "lora/books"})
    with pytest.raises(ModelError, match=r"prompt 1 asks for 'boks'.*books"):
        engine.rank_prompts(prompts[:2], 5, adapters=[None, "boks"])
    with pytest.raises(DataError, match="1 adapters for 2 prompts; give one a prompt"):
        engine.rank_prompts(prompts[:2], 5, adapters=["books"])


def test_items_can_be_replaced(engine, codes, prompts):
    fewer = engine.replace_trie(Trie.from_codes(codes[:30]))
    assert fewer.n_items == 30 and engine.n_items == len(codes)
    assert fewer.codebook_sizes == (8, 8, 8, 8)
    assert fewer.rank_prompts(prompts, 30).certified.all()
    with pytest.raises(ModelError, match="level 0 has tokens for 8 codes"):
        engine.replace_trie(Trie.from_codes(np.full((1, 4), 9)))


def test_an_overlong_prompt_is_refused(engine):
    assert engine.rank_prompts([[1] * 124], 5).item_index.shape == (1, 5)
    with pytest.raises(DataError, match="prompt 0 has 125 tokens; the model takes 124"):
        engine.rank_prompts([[1] * 125], 5)


def test_an_engine_without_the_processor_does_not_go_live(qwen3, trie, token_ids):
    llm = LLM(qwen3)
    llm.plugin = False
    with pytest.raises(ModelError, match=r"gave token \d+, which the catalogue forbids: 8 are"):
        VllmEngine(llm, trie, token_ids)


def test_an_engine_with_other_scores_does_not_go_live(qwen3, trie, token_ids):
    class Warm(LLM):
        def _say(self, params, values, sampled):
            return super()._say(params, values / 2 if params.logprobs != -1 else values, sampled)

    for plugin in (True, False):
        with pytest.raises(ModelError, match=r"scores of legal tokens differ by .*at most 0\.001"):
            VllmEngine(Warm(qwen3, plugin=plugin), trie, token_ids)


def test_half_precision_may_round(qwen3, trie, token_ids):
    class Rounded(LLM):
        def _say(self, params, values, sampled):
            return super()._say(params, values + 0.1 * (params.logprobs != -1), sampled)

    VllmEngine(Rounded(qwen3, dtype=torch.bfloat16), trie, token_ids)
    with pytest.raises(ModelError, match=r"differ by 0\.1"):
        VllmEngine(Rounded(qwen3), trie, token_ids)


def test_an_engine_that_gives_few_values_is_refused(qwen3, trie, token_ids):
    with pytest.raises(ModelError, match=r"at most max_logprobs=20 values.*max_logprobs=-1"):
        VllmEngine(LLM(qwen3, max_logprobs=20), trie, token_ids)


def test_tokens_outside_the_vocabulary_are_refused(qwen3, trie, token_ids):
    with pytest.raises(ModelError, match=r"level 3: token 1\d+ is outside the head's 300 rows"):
        VllmEngine(LLM(qwen3), trie, [*token_ids[:3], token_ids[3] + 1000])

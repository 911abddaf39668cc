"""The asynchronous engine over a stand-in for vLLM: equality, cancelling, adapters, faults."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.decode.vllm_async import AsyncVllmEngine, EngineGoneError, LoraShelf, open_async_vllm
from genrec.decode.vllm_items import VllmItems
from genrec.errors import CapacityError, DataError, ModelError, RecipeError
from tests.contracts.engine_contract import EVERY_NORMALIZE
from tests.decode.fake_async_vllm import AsyncLLM, install_async_vllm


@pytest.fixture(scope="module", autouse=True)
def starts():
    with install_async_vllm() as starts:
        yield starts


@pytest.fixture(scope="module")
def trie(codes):
    return Trie.from_codes(codes)


@pytest.fixture
def items(qwen3, trie, token_ids):
    return VllmItems(trie, token_ids, qwen3.config.vocab_size, 16)


def make_text(**changes):
    values = {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": None,
              "stop": (), "adapter": None}  # fmt: skip
    return SimpleNamespace(**values | changes)


async def run_together(asked):
    return await asyncio.gather(*asked)


async def write_text(engine, request, ends=()):
    async with aclosing(engine.write(request, ends)) as parts:
        return [part async for part in parts]


@EVERY_NORMALIZE
@pytest.mark.parametrize("plugin", [True, False])
def test_equals_the_embedded_engine(qwen3, items, token_ids, prompts, plugin, normalize):
    engine = AsyncVllmEngine(AsyncLLM(qwen3, plugin=plugin), items)
    search = Search(width=20, normalize=normalize)
    filters = [ItemFilter(np.arange(user)) for user in range(len(prompts))]
    asked = [engine.rank(p, 10, search, f) for p, f in zip(prompts, filters, strict=True)]
    theirs = TorchEngine(qwen3, items.trie, token_ids).rank_prompts(
        prompts, 10, search, filters=filters
    )
    for row, ours in enumerate(asyncio.run(run_together(asked))):
        np.testing.assert_array_equal(ours.item_index[0], theirs.item_index[row])
        np.testing.assert_allclose(ours.scores[0], theirs.scores[row], atol=1e-4)


def test_another_version_of_the_catalogue(qwen3, items, token_ids, prompts):
    engine = AsyncVllmEngine(AsyncLLM(qwen3), items)
    newer = items.replace_trie(items.trie.remove([1, 4]))
    ours = asyncio.run(engine.rank(prompts[0], 5, items=newer))
    theirs = TorchEngine(qwen3, newer.trie, token_ids).rank_prompts(prompts[:1], 5)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    assert newer.block_tokens == 16 and newer.codebook_sizes == items.codebook_sizes
    assert newer.n_items == items.n_items - 2


def test_items_alone_rank_nothing(items, prompts):
    with pytest.raises(ModelError, match="engine='items', which loads no weights"):
        items.rank_prompts(prompts, 5)


def test_wrong_requests_are_refused_before_the_engine_sees_them(qwen3, items):
    llm = AsyncLLM(qwen3)
    engine = AsyncVllmEngine(llm, items)
    with pytest.raises(CapacityError, match="k=0"):
        asyncio.run(engine.rank([1], 0))
    with pytest.raises(DataError, match="the model takes 124"):
        asyncio.run(engine.rank([1] * 125, 5))
    assert not llm.llm.batches


@pytest.mark.parametrize("keeps_apart", [True, False])
def test_kinds_of_requests_meet_only_where_they_may(qwen3, make_model, items, keeps_apart):
    llm = AsyncLLM(qwen3)
    llm.adapters["adapter:books"] = make_model("qwen3", seed=7)
    shelf = LoraShelf({"books": Path("books")})
    engine = AsyncVllmEngine(llm, items, shelf, keeps_apart=keeps_apart)
    asked = [engine.rank([5, 6, n], 5, adapter=["books", None][n % 2]) for n in range(8)]
    asyncio.run(run_together(asked))
    assert llm.have_met is not keeps_apart


def test_the_adapter_that_is_the_model_as_trained(qwen3, make_model, items, token_ids):
    llm = AsyncLLM(qwen3)
    llm.adapters["own"] = trained = make_model("qwen3", seed=7)
    engine = AsyncVllmEngine(llm, items, LoraShelf({}, Path("own")))
    ours = asyncio.run(engine.rank([5, 6, 7], 5))
    theirs = TorchEngine(trained, items.trie, token_ids).rank_prompts([[5, 6, 7]], 5)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    with pytest.raises(ModelError, match="unknown adapter 'book'"):
        asyncio.run(engine.rank([5], 5, adapter="book"))


def test_a_search_that_is_given_up_leaves_nothing_in_the_engine(qwen3, items):
    llm = AsyncLLM(qwen3)
    llm.pause = 60
    engine = AsyncVllmEngine(llm, items)

    async def give_up():
        task = asyncio.create_task(engine.rank([1, 2, 3], 5))
        await asyncio.sleep(0.01)
        assert llm.inside
        task.cancel()
        await asyncio.wait((task,))
        assert not llm.inside

    asyncio.run(give_up())


def test_an_engine_that_dies_says_so(qwen3, items):
    llm = AsyncLLM(qwen3)
    engine = AsyncVllmEngine(llm, items)
    llm.fault = ValueError("overheated")
    with pytest.raises(EngineGoneError, match="overheated"):
        asyncio.run(engine.rank([1], 5))
    llm.errored = True
    assert engine.is_gone
    with pytest.raises(EngineGoneError, match="EngineCore encountered an issue"):
        asyncio.run(write_text(engine, make_text()))


def test_texts(qwen3, items):
    engine = AsyncVllmEngine(AsyncLLM(qwen3), items)
    parts = asyncio.run(write_text(engine, make_text()))
    assert len(parts) == 4 and [part.finish for part in parts] == [None, None, None, "length"]
    end = int(parts[1].text[1:-1])
    assert asyncio.run(write_text(engine, make_text(), [end]))[-1].finish == "stop"
    parts = asyncio.run(write_text(engine, make_text(prompt=[1] * 126, max_tokens=50)))
    assert len(parts) == 2, "the model reads 128"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": []}, DataError, "token ids from 0 to 299, at least one"),
        ({"prompt": [300]}, DataError, "token ids from 0 to 299"),
        ({"prompt": [1] * 128}, CapacityError, "128 tokens, and the model reads 128"),
        ({"top_p": 2.0}, DataError, "top_p must be in"),
    ],
)
def test_texts_that_cannot_be_written(qwen3, items, changes, error, message):
    engine = AsyncVllmEngine(AsyncLLM(qwen3), items)
    with pytest.raises(error, match=message):
        asyncio.run(write_text(engine, make_text(**changes)))


@pytest.mark.parametrize("plugin", [True, False])
def test_an_engine_is_opened_checked_and_closed(qwen3, items, starts, plugin):
    starts["llm"] = llm = AsyncLLM(qwen3, plugin=plugin)
    engine = asyncio.run(open_async_vllm("model", items, plugin=plugin, tensor_parallel_size=2))
    assert starts["args"]["model"] == "model" and starts["args"]["tensor_parallel_size"] == 2
    assert ("NodeScores" in str(starts["args"]["logits_processors"])) is plugin
    asyncio.run(engine.close())
    assert llm.is_shut


def test_a_plugin_that_is_ignored_keeps_an_engine_from_going_live(qwen3, items, starts):
    starts["llm"] = llm = AsyncLLM(qwen3, plugin=False, logprobs_mode="processed_logits")
    with pytest.raises(ModelError, match="which the catalogue forbids"):
        asyncio.run(open_async_vllm("model", items))
    assert llm.is_shut


def test_adapters_are_loaded_at_the_start(qwen3, items, starts, tmp_path):
    for name in ("books", "games"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')
    shelf = LoraShelf({"books": tmp_path / "books"}, tmp_path / "games")
    starts["llm"] = llm = AsyncLLM(qwen3)
    asyncio.run(open_async_vllm("model", items, shelf))
    assert llm.loaded == ["own", "adapter:books"] and starts["args"]["max_loras"] == 2
    llm.refused.add(str(tmp_path / "books"))
    with pytest.raises(ModelError, match=r"adapters that vLLM refuses: 1 problem\n.*cannot load"):
        asyncio.run(open_async_vllm("model", items, shelf))


def test_what_vllm_does_not_have_or_does_not_start_with(items, starts):
    with pytest.raises(RecipeError, match=r"vLLM does not have: 1 .*\n.*tensor_parallel_size"):
        asyncio.run(open_async_vllm("model", items, tensor_paralel_size=2))
    starts["llm"] = RuntimeError("no memory")
    with pytest.raises(ModelError, match=r"vLLM does not start .RuntimeError: no memory"):
        asyncio.run(open_async_vllm("model", items))

"""The asynchronous engine on a real vLLM: equality, cancelling, adapters, texts."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
import torch

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.vllm_async import EngineGoneError, LoraShelf, open_async_vllm
from genrec.decode.vllm_items import VllmItems
from genrec.errors import CapacityError, ModelError
from genrec.serve.backend import TextJob
from tests.contracts.engine_contract import EVERY_NORMALIZE
from tests.vllm.small_model import (
    NEEDS_VLLM,
    TOKEN_IDS,
    VOCABULARY,
    load_model,
    make_prompts,
    make_trie,
)

pytestmark = NEEDS_VLLM
TOLERANCE = 1e-3
PROMPTS = make_prompts(9, 64, 70, 1, 200, 192)
SMALL = {"max_model_len": 256, "num_gpu_blocks_override": 512}


@pytest.fixture(scope="module")
def engine(folder, runner):
    shelf = LoraShelf({name: folder / name for name in ("books", "games")})
    items = VllmItems(make_trie(), TOKEN_IDS, VOCABULARY)
    engine = runner.run(open_async_vllm(folder / "model", items, shelf, **SMALL))
    yield engine
    runner.run(engine.close())


def build_torch(folder, adapter=None):
    model = load_model(folder / "model", adapter and folder / adapter)
    return TorchEngine(model, make_trie(), TOKEN_IDS)


def assert_equal(found, wanted, row=0) -> None:
    np.testing.assert_array_equal(found.item_index[0], wanted.item_index[row])
    np.testing.assert_allclose(found.scores[0], wanted.scores[row], atol=TOLERANCE)
    np.testing.assert_allclose(found.bound[0], wanted.bound[row], atol=TOLERANCE)
    assert found.evaluations[0] == wanted.evaluations[row]


async def run_together(*asked):
    return await asyncio.gather(*asked)


@EVERY_NORMALIZE
def test_searches_of_many_users_at_once_equal_the_embedded_engine(
    runner, engine, folder, normalize
):
    search = Search(width=20, normalize=normalize)
    filters = [ItemFilter(np.arange(row)) for row in range(len(PROMPTS))]
    wanted = build_torch(folder).rank_prompts(PROMPTS, 20, search, filters=filters)
    asked = [
        engine.rank(*pair)
        for pair in ((p, 20, search, f) for p, f in zip(PROMPTS, filters, strict=True))
    ]
    for row, found in enumerate(runner.run(run_together(*asked))):
        assert_equal(found, wanted, row)


def test_adapters_and_the_model_itself_at_once(runner, engine, folder):
    """Twice over: what the prefix cache keeps of one must not serve another."""
    names = ["books", None, "games", "books", None, "games"] * 2
    (prompt,) = make_prompts(70)
    wanted = {name: build_torch(folder, name).rank_prompts([prompt], 10) for name in set(names)}
    assert len({tuple(one.item_index[0]) for one in wanted.values()}) == 3
    for _ in range(2):
        asked = [engine.rank(prompt, 10, adapter=name) for name in names]
        for name, found in zip(names, runner.run(run_together(*asked)), strict=True):
            assert_equal(found, wanted[name])
    with pytest.raises(ModelError, match=r"unknown adapter 'book'.*books"):
        runner.run(engine.rank(prompt, 10, adapter="book"))


def test_the_adapter_that_is_the_model_as_trained(runner, engine, folder):
    """Where the weights are a base, requests without an adapter get the model's own."""
    own = type(engine)(
        engine._llm, engine.items, LoraShelf({"games": folder / "games"}, folder / "books")
    )
    own._numbers = {"own": 1, "adapter:games": 2}
    (prompt,) = make_prompts(80)
    found = runner.run(own.rank(prompt, 5))
    assert_equal(found, build_torch(folder, "books").rank_prompts([prompt], 5))


def test_a_search_that_is_given_up_leaves_nothing_in_the_engine(runner, engine):
    async def cancel_midway():
        asked = [
            asyncio.create_task(engine.rank(prompt, 20, Search(width=50)))
            for prompt in make_prompts(*range(150, 180))
        ]
        while not engine._llm.get_num_unfinished_requests():
            await asyncio.sleep(0.001)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        assert all(task.cancelled() for task in asked)
        return engine._llm.get_num_unfinished_requests()

    assert runner.run(cancel_midway()) == 0
    assert not engine.is_gone
    runner.run(engine.rank(PROMPTS[0], 5))


def test_other_items_over_the_same_engine(runner, engine, folder):
    trie = make_trie().remove([3, 5, 8])
    items = engine.items.replace_trie(trie)
    found = runner.run(engine.rank(PROMPTS[2], 10, items=items))
    assert_equal(found, build_torch(folder).replace_trie(trie).rank_prompts([PROMPTS[2]], 10))


async def write_text(engine, job, ends=()):
    async with aclosing(engine.write(job, ends)) as parts:
        return [part async for part in parts]


def test_texts(runner, engine, folder):
    model = load_model(folder / "model")
    prompt = torch.tensor([PROMPTS[0]])
    wanted = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, len(PROMPTS[0]) :]
    job = TextJob(tuple(PROMPTS[0]), max_tokens=6)
    parts = runner.run(write_text(engine, job))
    assert sum(part.n_tokens for part in parts) == 6
    assert [part.finish for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish == "length"
    end = int(wanted[2])
    assert end not in wanted[:2]
    parts = runner.run(write_text(engine, job, [end]))
    assert parts[-1].finish == "stop" and sum(part.n_tokens for part in parts) == 3
    drawn = [TextJob(job.prompt, 8, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    texts = ["".join(p.text for p in runner.run(write_text(engine, one))) for one in drawn]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(CapacityError, match="256 tokens, and the model reads 256"):
        runner.run(write_text(engine, TextJob((1,) * 256)))


def test_an_adapter_that_vllm_refuses_is_said_at_the_start(runner, folder):
    broken = folder / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"r": 8, "peft_type": "LORA"}')
    items = VllmItems(make_trie(), TOKEN_IDS, VOCABULARY)
    with pytest.raises(ModelError, match=r"adapters that vLLM refuses: 1 problem\n.*broken"):
        runner.run(open_async_vllm(folder / "model", items, LoraShelf({"broken": broken}), **SMALL))


def test_a_plugin_that_is_ignored_keeps_the_engine_from_going_live(runner, folder):
    items = VllmItems(make_trie(), TOKEN_IDS, VOCABULARY)
    with pytest.raises(ModelError, match="which the catalogue forbids"):
        runner.run(open_async_vllm(folder / "model", items, logits_processors=None, **SMALL))


def test_a_model_that_does_not_exist(runner, folder):
    items = VllmItems(make_trie(), TOKEN_IDS, VOCABULARY)
    with pytest.raises(ModelError, match="vLLM does not start"):
        runner.run(open_async_vllm(folder / "nothing", items))


def test_without_the_plugin_and_an_engine_that_is_killed(runner, folder):
    items = VllmItems(make_trie(), TOKEN_IDS, VOCABULARY)
    engine = runner.run(open_async_vllm(folder / "model", items, plugin=False, **SMALL))
    wanted = build_torch(folder).rank_prompts(PROMPTS[:1], 10)
    assert_equal(runner.run(engine.rank(PROMPTS[0], 10)), wanted)

    async def kill():
        asked = [asyncio.create_task(engine.rank(p, 20)) for p in make_prompts(*range(90, 120))]
        while not engine._llm.get_num_unfinished_requests():
            await asyncio.sleep(0.001)
        for process in engine._llm.engine_core.resources.engine_manager.processes:
            process.kill()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    faults = runner.run(kill())
    assert {type(fault) for fault in faults} == {EngineGoneError}
    assert engine.is_gone
    runner.run(engine.close())

"""A model directory as a vLLM backend: which checkpoint, which adapters, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.errors import ModelError, RecipeError
from genrec.model_weights import AdaptedModel
from genrec.opening import ModelChoice, open_remote
from genrec.prompts.chat import ChatFrame
from genrec.recommender import Recommender
from genrec.serve import vllm_model
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.backend import RankJob
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.serve.vllm_backend import VllmBackend
from genrec.serve.vllm_model import build_vllm_backend, parse_engine_args, read_ends
from tests.decode.fake_async_vllm import AsyncLLM, install_async_vllm
from tests.decode.fake_server import FakeServer, serve_app


@pytest.fixture
def starts() -> Iterator[dict[str, Any]]:
    with install_async_vllm() as starts:
        yield starts


@pytest.fixture
def choice(tiny_run: Path) -> ModelChoice:
    return ModelChoice(tiny_run / "model", "vllm")


def load_weights(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32")


def build(choice: ModelChoice, adapters: Any = (), **args: Any) -> tuple[Recommender, VllmBackend]:
    return build_vllm_backend(choice, ServeSettings(), ServeMetrics(), dict(adapters), args)


def test_a_server_answers_as_the_embedded_engine(
    recommender: Recommender, choice: ModelChoice, starts: dict[str, Any]
) -> None:
    starts["llm"] = AsyncLLM(load_weights(choice.model), max_model_len=256)
    parts = Parts(replace(choice, dtype="float32"), engine_args={"tensor_parallel_size": 1})
    service, _ = assemble_server(parts, ServeSettings())
    edition = service.edition
    history = np.array([1, 4, 9])
    (prompt,) = edition.recommender.encode_prompts([history], [""])

    async def answer() -> Any:
        await service.start()
        assert service.failure is None and service.state == "ready"
        found = await service.backend.rank(RankJob(edition, tuple(prompt), 5))
        await service.stop()
        return found

    wanted = recommender.rank_items([history], 5, exclude_seen=False)
    np.testing.assert_array_equal(asyncio.run(answer()).item_index, wanted.item_index)
    args = starts["args"]
    assert args["model"] == args["tokenizer"] == str(choice.model)
    assert args["dtype"] == "float32" and args["tensor_parallel_size"] == 1
    assert edition.recommender.engine.block_tokens == 32  # type: ignore[attr-defined]


def test_prompts_are_cut_down_to_the_blocks_that_the_engine_has(
    choice: ModelChoice, starts: dict[str, Any]
) -> None:
    recommender, _ = build(replace(choice, align="drop"), block_size=16)
    assert recommender.aligner.drop_to == 16


def test_adapters_lie_over_the_base_and_the_models_own_is_one(
    choice: ModelChoice, starts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own", "books", "dora"):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "r": 8, "use_dora": name == "dora"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / name / "adapter_model.safetensors").touch()
    base = choice.model  # stands for a folder inside of it

    def find(model: Path, adapters: Any) -> AdaptedModel:
        return AdaptedModel(base, tmp_path / "own", adapters)

    monkeypatch.setattr(vllm_model, "find_adapted", find)
    starts["llm"] = llm = AsyncLLM(load_weights(choice.model), max_model_len=256)
    _, backend = build(choice, {"books": tmp_path / "books"})
    asyncio.run(backend.start())
    assert backend.adapters == ("books",) and llm.loaded == ["own", "adapter:books"]
    with pytest.raises(ModelError, match=r"cannot be used: 2 .*\n.*x .*no adapter_mo.*\n.*DoRA"):
        build(choice, {"x": tmp_path / "none", "dora": tmp_path / "dora"})


def test_titles_are_refused(choice: ModelChoice, tiny_run: Path) -> None:
    with pytest.raises(RecipeError, match="use engine torch for the titles"):
        build(replace(choice, catalogue=tiny_run / "data"))


def test_vllms_own_arguments() -> None:
    given = parse_engine_args(
        ["tensor-parallel-size=2", "gpu_memory_utilization=0.5", "plugin=false", "dtype=half"]
    )
    assert given == {
        "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "plugin": False, "dtype": "half"
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"--vllm-arg: 2 problems\n.*'x' is not KEY=VALUE"):
        parse_engine_args(["x", "=1"])


def test_what_ends_a_text(tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    own = tokenizer.eos_token_id
    assert read_ends(tmp_path, tokenizer, None) == {own}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    chat = ChatFrame("", "", tokenizer.convert_ids_to_tokens(9))
    assert read_ends(tmp_path, tokenizer, chat) == {own, 3, 4, 9}


def test_weights_that_run_in_a_stock_server(recommender: Recommender, choice: ModelChoice) -> None:
    with serve_app(FakeServer(load_weights(choice.model)).build_app()) as url:
        remote = open_remote(choice.model, url, block_tokens=16)
        ours = remote.recommend(recommender.item_ids[:3], k=4)
        remote.engine.close()  # type: ignore[attr-defined]
    theirs = recommender.recommend(recommender.item_ids[:3], k=4)
    assert [one.item_id for one in ours] == [one.item_id for one in theirs]

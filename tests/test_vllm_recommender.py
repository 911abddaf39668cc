"""The recommender over engine vllm, with a stand-in for vLLM; the real one is in tests/vllm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from genrec import model_engine
from genrec.decode.engine import Search
from genrec.decode.vllm_engine import VllmEngine
from genrec.errors import MissingExtraError, ModelError
from genrec.opening import ModelChoice, open_recommender
from genrec.recommender import Recommender
from tests.decode.fake_vllm import LLM, install_vllm


@pytest.fixture
def opened(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the stand-in was opened with, once it has been."""
    calls: list[tuple[Path, dict[str, Any]]] = []

    def open_vllm(path: Path, **args: Any) -> LLM:
        calls.append((path, args))
        return LLM(AutoModelForCausalLM.from_pretrained(path))

    monkeypatch.setattr(model_engine, "open_vllm", open_vllm)
    with install_vllm():
        yield calls


def test_it_recommends_what_engine_torch_recommends(tiny_run: Path, opened: Any) -> None:
    plain = Recommender.from_pretrained(tiny_run / "model", device="cpu")
    chosen = ModelChoice(tiny_run / "model", engine="vllm", dtype="float32")
    recommender = open_recommender(chosen)
    assert isinstance(recommender.engine, VllmEngine)
    assert opened == [(tiny_run / "model", {"dtype": "float32"})]
    history, search = plain.item_ids[:3], Search(width=20)
    ours = recommender.recommend(history, k=5, search=search)
    theirs = plain.recommend(history, k=5, search=search)
    assert [answer.item_id for answer in ours] == [answer.item_id for answer in theirs]
    assert [answer.score for answer in ours] == pytest.approx([a.score for a in theirs], abs=1e-4)


def test_arguments_reach_vllm(tiny_run: Path, opened: Any) -> None:
    args = {"adapters": {"books": "lora"}, "tensor_parallel_size": 2, "dtype": "float32"}
    recommender = Recommender.from_pretrained(tiny_run / "model", engine="vllm", vllm_args=args)
    assert opened[0][1] == args and recommender.engine.adapters == ("books",)


def test_without_vllm_the_extra_is_named(tiny_run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        with pytest.raises(MissingExtraError, match=r"vllm is not installed.*genrec\[vllm\]"):
            Recommender.from_pretrained(tiny_run / "model", engine="vllm")


def test_models_that_need_more_than_tokens_are_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Prompt:
        asks_title = True

    with pytest.raises(ModelError, match=r"answers with titles; engine vllm.*use engine torch"):
        model_engine.build_vllm_engine(tmp_path, None, None, {}, Prompt())  # type: ignore[arg-type]
    (tmp_path / "soft_users").mkdir()
    monkeypatch.setattr(Prompt, "asks_title", False)
    with pytest.raises(ModelError, match="has soft user tokens; engine vllm"):
        model_engine.build_vllm_engine(tmp_path, None, None, {}, Prompt())  # type: ignore[arg-type]

"""The rivals of the vLLM benchmark, over a stand-in for vLLM."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from genrec.bench.vllm_rivals import OURS, THEIRS, build_vllm_rivals, find_valid_share
from genrec.decode.trie import Trie
from genrec.decode.vllm_engine import VllmEngine
from tests.decode.conftest import build_model
from tests.decode.fake_vllm import LLM, install_vllm

CODES = np.array([[first, second] for first in range(4) for second in range(6)])
TOKEN_IDS = [np.arange(200, 204), np.arange(210, 216)]


def answer(*tokens: int) -> SimpleNamespace:
    return SimpleNamespace(tokens=[1, 2, 3, *tokens])


class Both(LLM):
    """Also has a beam search, which knows no catalogue."""

    asked = None
    n_resets = 0

    def reset_prefix_cache(self) -> None:
        self.n_resets += 1

    def beam_search(self, prompts, params):
        self.asked = (prompts, params)
        answers = [answer(200, 210), answer(203, 215), answer(203, 216), answer(210, 200)]
        return [SimpleNamespace(sequences=answers)]


def test_both_search_as_widely_from_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with install_vllm():
        monkeypatch.setattr(
            sys.modules["vllm.sampling_params"], "BeamSearchParams", SimpleNamespace, raising=False
        )
        llm = Both(build_model("qwen3"))
        engine = VllmEngine(llm, Trie.from_codes(CODES), TOKEN_IDS)
        rivals = build_vllm_rivals(engine, [[1, 2, 3]], 8, aligned=[[2, 3]])
        llm.batches.clear()
        ranked = rivals[OURS]()
        assert ranked.item_index.shape == (1, 8) and llm.batches[0] == [[2, 3]]
        outputs = rivals[THEIRS]()
        assert llm.n_resets == 2
        prompts, params = llm.asked
        assert prompts == [{"prompt_token_ids": [1, 2, 3]}]
        assert params == SimpleNamespace(beam_width=8, max_tokens=2, ignore_eos=True)
        assert find_valid_share(engine, outputs) == 0.5
        build_vllm_rivals(engine, [[1, 2, 3]], 8)[OURS]()
        assert llm.batches[2] == [[1, 2, 3]]

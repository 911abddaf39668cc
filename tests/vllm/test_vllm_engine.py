"""The vLLM engine on a real vLLM: the contract, equality with the embedded engine, adapters."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from genrec.decode.engine import Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.vllm_engine import VllmEngine
from genrec.decode.vllm_open import open_vllm
from tests.contracts.engine_contract import EVERY_NORMALIZE, EngineContract
from tests.vllm.small_model import (
    NEEDS_VLLM,
    TOKEN_IDS,
    load_model,
    make_prompts,
    make_trie,
    start_vllm,
)

pytestmark = NEEDS_VLLM
TOLERANCE = 1e-3
# Shorter than a block, a whole number of blocks, and neither.
PROMPTS = make_prompts(9, 64, 70, 1, 200, 192)


@pytest.fixture(scope="module")
def adapters(folder):
    return {name: folder / name for name in ("books", "games")}


@pytest.fixture(scope="module")
def engine(folder, adapters):
    with start_vllm(partial(open_vllm, folder / "model", adapters=adapters)) as llm:
        yield VllmEngine(llm, make_trie(), TOKEN_IDS, adapters)


@pytest.fixture(scope="module")
def plain_engine(folder):
    with start_vllm(partial(open_vllm, folder / "model", plugin=False)) as llm:
        yield VllmEngine(llm, make_trie(), TOKEN_IDS)


@pytest.fixture(scope="module")
def torch_engine(folder):
    return TorchEngine(load_model(folder / "model"), make_trie(), TOKEN_IDS)


def assert_equal(found, wanted) -> None:
    np.testing.assert_array_equal(found.item_index, wanted.item_index)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=TOLERANCE)
    np.testing.assert_allclose(found.bound, wanted.bound, atol=TOLERANCE)
    np.testing.assert_array_equal(found.evaluations, wanted.evaluations)


class TestVllmEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls):
        return PROMPTS[:4]

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, engine):
        return engine


@EVERY_NORMALIZE
@pytest.mark.parametrize("name", ["engine", "plain_engine"])
def test_equals_the_embedded_engine(request, torch_engine, name, normalize):
    engine = request.getfixturevalue(name)
    search = Search(width=20, normalize=normalize)
    wanted = torch_engine.rank_prompts(PROMPTS, 20, search)
    for _ in range(2):  # the second time, prompts come out of the cache
        assert_equal(engine.rank_prompts(PROMPTS, 20, search), wanted)


def test_each_prompt_has_its_adapter_and_others_have_none(engine, torch_engine, adapters, folder):
    """In one call, twice over: what the cache keeps of one must not serve another."""
    names = ["books", None, "games", "books", None, "games"]
    merged = {
        name: TorchEngine(load_model(folder / "model", path), make_trie(), TOKEN_IDS)
        for name, path in adapters.items()
    }
    prompts = [PROMPTS[1]] * 3 + [PROMPTS[2]] * 3
    for _ in range(2):
        found = engine.rank_prompts(prompts, 10, adapters=names)
        for row, name in enumerate(names):
            right = merged[name] if name else torch_engine
            wanted = right.rank_prompts([prompts[row]], 10)
            np.testing.assert_array_equal(found.item_index[row], wanted.item_index[0])
            np.testing.assert_allclose(found.scores[row], wanted.scores[0], atol=TOLERANCE)
    assert len({tuple(row) for row in found.item_index.tolist()}) == len(names)


def test_other_items_over_the_same_engine(engine, torch_engine):
    trie = make_trie().remove([3, 5, 8])
    found = engine.replace_trie(trie).rank_prompts(PROMPTS, 10)
    assert_equal(found, torch_engine.replace_trie(trie).rank_prompts(PROMPTS, 10))


@pytest.mark.parametrize("n_tokens", [192, 200])
def test_beams_read_again_what_does_not_fill_a_block(engine, n_tokens):
    (prompt,) = make_prompts(n_tokens)
    engine.rank_prompts([prompt], 5)
    from vllm import SamplingParams

    (output,) = engine.llm.generate(
        [{"prompt_token_ids": [*prompt, 450]}], SamplingParams(max_tokens=1), use_tqdm=False
    )
    assert engine.block_tokens == 32 and output.num_cached_tokens == 192

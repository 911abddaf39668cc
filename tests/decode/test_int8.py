"""Layers in 8 bits: close to float32, measured, and refused where they are not meant for."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from genrec.decode.engine import Search
from genrec.decode.int8 import Int8Linear, quantize_engine
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import ModelError
from tests.contracts.engine_contract import assert_valid


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_close(bias):
    torch.manual_seed(0)
    layer, values = nn.Linear(64, 48, bias=bias), torch.randn(2, 5, 64)
    with torch.no_grad():
        layer.weight[3] = 0
        exact, rounded = layer(values), Int8Linear(layer)(values)
    assert rounded.shape == exact.shape
    assert float((rounded - exact).square().mean().sqrt() / exact.std()) < 0.04


def test_an_engine_says_what_int8_changes(make_model, codes, token_ids, prompts, caplog):
    model = make_model("qwen3")
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    with caplog.at_level(logging.WARNING):
        error = quantize_engine(engine, prompts)
    assert error.n_prompts == len(prompts) and error.k == 10
    assert 0.6 < error.overlap <= 1 and 0 <= error.same_order <= 1
    assert f"{100 * error.overlap:.1f}% are those of float32" in caplog.text
    assert "same in order" in caplog.text
    assert isinstance(model.model.layers[1].mlp.down_proj, Int8Linear)
    assert isinstance(model.lm_head, nn.Linear)
    ranked = engine.rank_prompts(prompts, 10, Search(width=50))
    assert_valid(ranked, len(codes))
    assert engine.way.__name__ == "LeanPromptCache"


def test_a_small_catalogue_is_compared_whole(make_model, token_ids, prompts):
    engine = TorchEngine(make_model("llama"), Trie.from_codes([[3], [1]]), token_ids[:1])
    assert quantize_engine(engine, prompts).k == 2


def test_other_numbers_and_models_without_layers_are_refused(make_model, codes, token_ids, prompts):
    trie = Trie.from_codes(codes)
    half = TorchEngine(make_model("llama").to(torch.bfloat16), trie, token_ids)
    with pytest.raises(ModelError, match=r"int8 is for float32 .*bfloat16 on cpu; load it with"):
        quantize_engine(half, prompts)
    with pytest.raises(ModelError, match="GPT2LMHeadModel has no linear layers to put into int8"):
        quantize_engine(TorchEngine(make_model("gpt2"), trie, token_ids), prompts)

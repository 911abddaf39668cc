"""Which models are searched, how, and which are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from genrec.decode.head import LanguageHead
from genrec.decode.lean import LeanPromptCache
from genrec.decode.probe import choose_cache, max_positions
from genrec.decode.prompt_cache import CopiedPromptCache, SharedPromptCache
from genrec.errors import ModelError


def choose(model, token_ids):
    with torch.inference_mode():
        return choose_cache(model, LanguageHead(model, token_ids))


@pytest.mark.parametrize(
    "architecture", ["qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "phi", "granite"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_models_share_the_prompt(architecture, dtype, make_model, token_ids):
    is_lean = architecture in ("qwen3", "llama")
    expected = LeanPromptCache if is_lean else SharedPromptCache
    assert choose(make_model(architecture).to(dtype), token_ids) is expected


def test_layers_that_do_more_than_is_written_out_run_through_their_own_forward(
    make_model, token_ids
):
    model = make_model("llama")
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda _module, _inputs, hidden: hidden * 1.1)
    assert choose(model, token_ids) is SharedPromptCache


def test_projections_with_hooks_are_called_as_modules(make_model, token_ids):
    model = make_model("llama")
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _m, _i, values: values * 2)
    assert choose(model, token_ids) is LeanPromptCache


def test_a_model_that_takes_no_tree_mask_gets_copies(make_model, token_ids, caplog):
    with caplog.at_level("INFO"):
        assert choose(make_model("bloom"), token_ids) is CopiedPromptCache
    assert "BloomForCausalLM copies its prompt to every beam" in caplog.text


def test_a_uniform_model_is_no_fault(make_model, token_ids):
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert choose(model, token_ids) is LeanPromptCache


def test_encoder_decoder_models_are_refused(token_ids):
    config = T5Config(vocab_size=300, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        choose(T5ForConditionalGeneration(config), token_ids)


def test_a_head_that_does_more_than_its_rows_is_refused(make_model, token_ids):
    model = make_model("qwen3")
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits * 2)
    with pytest.raises(ModelError) as error:
        choose(model, token_ids)
    assert "Qwen3ForCausalLM cannot be searched" in str(error.value)
    assert "SharedPromptCache: logits differ by" in str(error.value)
    assert "Merge adapters" in str(error.value)


def test_a_model_of_few_positions_is_probed_within_them(make_model, token_ids):
    model = make_model("gpt2", n_positions=5)
    assert max_positions(model) == 5
    assert choose(model, token_ids) is SharedPromptCache

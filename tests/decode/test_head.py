"""The head's rows and its streamed sum against the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.decode import head as head_module
from genrec.decode.head import LanguageHead
from genrec.errors import ModelError


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "phi", "cohere", "granite"])
@pytest.mark.parametrize("chunk_rows", [7, 300, 4096])
def test_scores_are_those_of_forward(
    architecture, chunk_rows, make_model, token_ids, prompts, monkeypatch
):
    monkeypatch.setattr(head_module, "_CHUNK_ROWS", chunk_rows)
    model = make_model(architecture)
    head = LanguageHead(model, token_ids)
    tokens = torch.tensor([prompts[0]])
    with torch.inference_mode():
        logits = model(tokens).logits[0]
        hidden = model.model(tokens).last_hidden_state[0]
        for level, ids in enumerate(token_ids):
            found = head.level_logits(level, hidden)
            torch.testing.assert_close(found, logits[:, ids].T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            head.log_sum_exp(hidden), logits.logsumexp(1), atol=1e-5, rtol=1e-5
        )


def test_a_bias_counts(make_model, token_ids):
    model = make_model("phi")
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-3, 3, model.config.vocab_size))
    head = LanguageHead(model, token_ids)
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[3, 4]])).last_hidden_state[0]
        logits = model.lm_head(hidden)
        torch.testing.assert_close(head.level_logits(2, hidden), logits[:, token_ids[2]].T)
        torch.testing.assert_close(head.log_sum_exp(hidden), logits.logsumexp(1))


def test_code_rows_are_float32_in_a_half_precision_model(make_model, token_ids):
    head = LanguageHead(make_model("qwen3").to(torch.bfloat16), token_ids)
    hidden = torch.randn(3, 32, dtype=torch.bfloat16)
    assert head.dtype == torch.bfloat16
    assert head.level_logits(0, hidden).dtype == torch.float32
    assert len(head.level_logits(0, hidden).unique()) == 24
    assert head.log_sum_exp(hidden).dtype == torch.float32


def test_a_model_without_a_head_is_refused(qwen3, token_ids):
    with pytest.raises(ModelError, match="Qwen3Model has no language-model head; load"):
        LanguageHead(qwen3.model, token_ids)


def test_foreign_and_shared_tokens_are_all_named(qwen3):
    with pytest.raises(ModelError) as error:
        LanguageHead(qwen3, [np.array([1, 2]), np.array([5, 300]), np.array([7, 8, 7])])
    assert "2 problems" in str(error.value)
    assert "level 1: token 300 is outside the head's 300 rows" in str(error.value)
    assert "level 2: token 7 stands for two codes" in str(error.value)


def test_a_token_far_above_the_first_chunk_does_not_overflow(make_model, token_ids):
    model = make_model("qwen3", vocab_size=3000)
    with torch.inference_mode():
        model.lm_head.weight[2999] *= 500
        head = LanguageHead(model, token_ids)
        hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        logits = model.lm_head(hidden)
        assert float(logits[:, 2999].max() - logits[:, :1024].max()) > 100
        torch.testing.assert_close(head.log_sum_exp(hidden), logits.logsumexp(dim=1))

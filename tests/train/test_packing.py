"""Rows end to end give what rows alone give, whatever the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from genrec.train.adapter import prepare_model
from genrec.train.batches import ABOUT, Collator, lay_rows
from genrec.train.loss import completion_loss
from genrec.train.packing import ATTENTION, pack_attention
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRow, EncodedRows, pack_rows
from genrec.train.sft import _take_one_device, train_rows

V = 60
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "qwen3": ("Qwen3", SHAPE),
    "gemma2": ("Gemma2", {**SHAPE, "sliding_window": 6}),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": 5}),
    "gpt2": ("GPT2", {**GPT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}),
}
# Attention that is not causal softmax attention alone: ALiBi, a class of its own, a convolution.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": V,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
        },
    ),
    "lfm2": ("Lfm2", {**SHAPE, "layer_types": ["conv", "full_attention"]}),
}


def build(kind: str, **changes: Any) -> Any:
    name, values = (MODELS | OTHERS)[kind]
    config = getattr(transformers, f"{name}Config")(**{**values, **changes})
    torch.manual_seed(0)
    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{head}")(config)
    with torch.no_grad():  # from 0.02 on, attention would hardly be seen in the logits
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()


@pytest.fixture
def rows() -> EncodedRows:
    """Rows of like and unlike lengths, longer than the windows of some models."""
    random = np.random.default_rng(0)
    sizes = [(9, 4), (20, 15), (5, 1), (7, 6), (30, 20), (12, 3), (20, 10), (20, 19)]
    return pack_rows(
        [EncodedRow(random.integers(3, V, n).astype(np.int32), first) for n, first in sizes]
    )


def run_batch(model: Any, rows: EncodedRows, *, packed: bool, smoothing: float = 0.0) -> Any:
    """Loss and gradients of all rows in one batch."""
    batch = Collator(0, packed=packed)([rows[row] for row in range(len(rows))])
    labels, _ = batch.pop("labels"), batch.pop(ABOUT)
    model.zero_grad()
    loss = completion_loss(model(**batch, use_cache=False), labels, label_smoothing=smoothing)
    loss.backward()
    return float(loss.detach()), take_gradients(model)


def run_alone(model: Any, rows: EncodedRows, smoothing: float = 0.0) -> Any:
    """The same from single rows and logits everywhere, in the model's own attention."""
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number].input_ids.astype(np.int64))[None]
        first = rows[number].n_prompt
        logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1]
        total = total + cross_entropy(
            logits, ids[0, first:], reduction="sum", label_smoothing=smoothing
        )
        count += ids.shape[1] - first
    (total / count).backward()
    return float(total.detach()) / count, take_gradients(model)


def take_gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items()}


def compare(first: Any, second: Any, tolerance: float = 1e-5) -> None:
    assert first[0] == pytest.approx(second[0], abs=tolerance)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        scale = max(float(gradient.abs().max()), 1.0)
        torch.testing.assert_close(second[1][name], gradient, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_packed_rows_equal_single_and_padded_ones(kind: str, rows: EncodedRows) -> None:
    model = build(kind)
    alone, smooth = run_alone(model, rows), run_alone(model, rows, smoothing=0.1)
    own = model.config._attn_implementation
    with pack_attention(model, rows) as packed:
        assert packed
        assert model.config._attn_implementation == ATTENTION
        compare(alone, run_batch(model, rows, packed=True))
        compare(smooth, run_batch(model, rows, packed=True, smoothing=0.1))
        # Inside, batches with padding stay what they are: validation may be of either kind.
        compare(alone, run_batch(model, rows, packed=False))
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("kind", MODELS)
def test_no_row_sees_another_at_all(kind: str, rows: EncodedRows) -> None:
    model = build(kind)
    chosen = [rows[row] for row in range(len(rows))]
    other = np.full_like(chosen[4].input_ids, 3)
    changed = [*chosen[:4], EncodedRow(other, chosen[4].n_prompt), *chosen[5:]]

    def run(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        owners = batch.pop(ABOUT)["target_rows"][0]
        del batch["labels"]
        return model(**batch).logits[0], owners

    with pack_attention(model, rows), torch.no_grad():
        before, owners = run(lay_rows(chosen))
        after, _ = run(lay_rows(changed))
    assert torch.equal(before[owners != 4], after[owners != 4])
    assert not torch.allclose(before[owners == 4], after[owners == 4])


@pytest.mark.parametrize("kind", OTHERS)
def test_other_attention_falls_back_to_padding(
    kind: str, rows: EncodedRows, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(kind)
    own = model.config._attn_implementation
    alone = run_alone(model, rows)
    with caplog.at_level(logging.INFO), pack_attention(model, rows) as packed:
        assert not packed
        assert model.config._attn_implementation == own
        assert "does not give packed rows the logits of single ones" in caplog.text
        if kind != "lfm2":  # left padding runs through its convolution
            compare(alone, run_batch(model, rows, packed=False))


def test_soft_capping_of_eager_attention_is_seen(rows: EncodedRows) -> None:
    model = build("gemma2", attn_logit_softcapping=0.5, attn_implementation="eager")
    with pack_attention(model, rows) as packed:
        assert not packed


def test_a_window_is_tried_with_rows_beyond_it(
    rows: EncodedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.train.packing._PROBE_TOKENS", 4)
    monkeypatch.setattr(
        "genrec.train.packing._see_window",
        lambda width, *_: torch.ones(width, width, dtype=torch.bool).tril()[None, None],
    )
    with pack_attention(build("mistral"), rows) as packed:
        assert not packed
    with pack_attention(build("llama"), rows) as packed:
        assert packed


def test_weights_that_are_not_there_are_taken_at_their_word(rows: EncodedRows) -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    with pack_attention(model, rows) as packed:
        assert packed
    model._supports_attention_backend = False
    with pack_attention(model, rows) as packed:
        assert not packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_adapters_and_autocast_keep_rows_apart(
    dtype: torch.dtype, rows: EncodedRows
) -> None:
    model = build("qwen3").to(dtype)
    recipe = TrainRecipe(rank=4, dropout=0.0)
    adapted = prepare_model(model, recipe, list(range(50, V)))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    use_bf16 = dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16):
        alone = run_alone(adapted, rows)
        with pack_attention(adapted, rows) as packed:
            assert packed
            compare(alone, run_batch(adapted, rows, packed=True), tolerance)
            adapted.train()
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
            compare(alone, run_batch(adapted, rows, packed=True), tolerance)
    assert adapted.training


def test_dropout_in_attention_runs_and_learns(rows: EncodedRows) -> None:
    model = build("qwen3", attention_dropout=0.5).train()
    with pack_attention(model, rows) as packed:
        assert packed  # compared without dropout
        assert model.training
        torch.manual_seed(0)
        first = run_batch(model, rows, packed=True)
        torch.manual_seed(0)
        compare(first, run_batch(model, rows, packed=True), 0.0)
        assert run_batch(model, rows, packed=True)[0] != first[0]
        assert all(bool(gradient.isfinite().all()) for gradient in first[1].values())


@pytest.fixture
def train(recipe: TrainRecipe, rows: EncodedRows, tmp_path: Path) -> Callable[..., Any]:
    """Train a decoder on the rows; gives the result and how often its attention was packed."""

    def begin(name: str, kind: str = "qwen3", **changes: Any) -> Any:
        out = tmp_path / name
        out.mkdir()
        changed = recipe.model_copy(update={"method": "full", "batch_size": 3, **changes})
        return train_rows(build(kind), 0, rows, rows, changed, out)

    return begin


def test_training_is_the_same_packed_and_padded(train: Any) -> None:
    changes = {"max_steps": 4, "learning_rate": 1e-3, "eval_every": 2.0}
    packed, padded = (
        train("packed", packing=True, **changes),
        train("padded", packing=False, **changes),
    )
    assert packed.tokens == padded.tokens
    assert packed.best_eval_loss == pytest.approx(padded.best_eval_loss, abs=1e-4)
    for name, weight in packed.model.named_parameters():
        torch.testing.assert_close(
            weight, dict(padded.model.named_parameters())[name], atol=1e-4, rtol=0
        )
    assert packed.model.config._attn_implementation == "sdpa"


def test_training_pads_where_packing_does_not_fit(
    train: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trained = train("bloom", kind="bloom", max_steps=1, eval_every=1.0)
    assert trained.updates == 1
    assert "batches are padded" in caplog.text


def test_one_process_takes_one_gpu(caplog: pytest.LogCaptureFixture) -> None:
    settings = SimpleNamespace(n_gpu=2, _n_gpu=2)
    with caplog.at_level(logging.INFO):
        _take_one_device(settings)
    assert settings._n_gpu == 1
    assert "one of 2 GPUs is used; start it under `accelerate launch`" in caplog.text

"""Every method trains what it says, and merges into the model it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from genrec.errors import ModelError, RecipeError
from genrec.recipe import parse_recipe
from genrec.train import quantized
from genrec.train.adapter import ROW_PARAMETER, merge_adapter
from genrec.train.checkpoint import load_checkpoint
from genrec.train.quantized import check_quantization, is_quantized, restore_base
from genrec.train.recipe import ADAPTER_METHODS, TrainRecipe
from genrec.train.step import make_model
from tests.train.made_inputs import Inputs
from tests.train.made_runs import Run, begin


def shake(run: Run) -> torch.Tensor:
    """Token ids that read trained rows, after every trained weight was moved off its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    run.model.eval()
    return torch.tensor([[5, 9, *run.new_ids[:4], 7, run.new_ids[-1]]])


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("method", [*ADAPTER_METHODS, "full"])
def test_merged_logits_are_those_of_the_adapted_model(
    method: str, kind: str, bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    run = begin(recipe.model_copy(update={"method": method}), bases(kind), inputs)
    ids = shake(run)
    expected = logits(run.model, ids)
    merged = merge_adapter(run.model)
    # For qlora the base is 4 bits wide before and dequantized after: the same values either way.
    assert torch.allclose(logits(merged, ids), expected, atol=2e-5)
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (kind == "qwen3")
    assert not is_quantized(merged)
    assert not any("4bit" in type(module).__name__ for module in merged.modules())


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_an_adapter_leaves_the_base_alone(
    method: str, bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    run = begin(recipe.model_copy(update={"method": method}), bases("qwen3"), inputs)
    trained = {name for name, value in run.model.named_parameters() if value.requires_grad}
    assert any(ROW_PARAMETER in name for name in trained)
    assert all("lora_" in name or ROW_PARAMETER in name for name in trained)
    assert any("magnitude" in name for name in trained) == (method == "dora")
    assert is_quantized(run.model) == (method == "qlora")
    scaling = run.model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert scaling == (4.0 if method == "rslora" else 2.0)  # alpha 8, rank 4


def test_frozen_rows_are_not_trained(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    run = begin(recipe.model_copy(update={"token_rows": "frozen"}), bases("llama"), inputs)
    trained = [name for name, value in run.model.named_parameters() if value.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not any(ROW_PARAMETER in name for name, _ in run.model.named_parameters())


def test_a_restored_base_is_the_one_that_was_quantized(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    run = begin(recipe.model_copy(update={"method": "qlora"}), bases("llama"), inputs)
    ids = shake(run)
    whole = begin(recipe, bases("llama"), inputs)
    four_bits = logits(run.model, ids)
    restored = restore_base(run.model)
    assert torch.allclose(logits(restored, ids), four_bits, atol=1e-5)
    # And it is only nearly the base that was given: 4 bits do cost something.
    given = whole.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    found = restored.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert 0.02 < float((given - found).norm() / given.norm()) < 0.2


def test_qlora_goes_the_whole_way(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"method": "qlora", "max_steps": 4, "precision": "bf16"})
    folders = (inputs.instructions, inputs.tokenizer, inputs.data)
    artifact = make_model(recipe, bases("qwen3"), *folders, tmp_path / "model")
    assert artifact.manifest.facts["method"] == "qlora"
    opened = AutoModelForCausalLM.from_pretrained(artifact.path)
    assert opened.dtype == torch.bfloat16 and not is_quantized(opened)
    assert "quantization_config" not in (artifact.path / "config.json").read_text()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'genrec\[qlora\]'"):
        check_quantization()


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_four_bits_are_not_cut_into_shards(
    kind: DistributedType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class State:
        distributed_type = kind

    check_quantization()
    monkeypatch.setattr(quantized, "PartialState", State)
    with pytest.raises(ModelError, match=f"does not go with {kind.value}.*ddp.yaml"):
        check_quantization()


def test_transposed_layers_and_adapters_are_refused_in_four_bits(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    quantized.check_layers(model)
    model[0].source_cls = Conv1D
    with pytest.raises(ModelError, match=r"does not fit Sequential, .*\(Conv1D\)"):
        quantized.check_layers(model)
    model = begin(recipe, bases("llama"), inputs).model
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ModelError, match="cannot be merged into a base in 4 bits"):
        load_checkpoint(tmp_path / "adapter", torch.float32, {"quantization_config": None})


def test_full_tuning_refuses_what_is_for_rows() -> None:
    for values in ({"row_warmup": 0.1}, {"row_learning_rate": 0.1}):
        with pytest.raises(RecipeError, match="need an adapter; with method full the token rows"):
            parse_recipe(TrainRecipe, {"method": "full", **values})

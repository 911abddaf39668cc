"""What is trained: a LoRA adapter plus the new token rows, or every weight.

Owns preparing a model for training and merging it back into a plain one. Knows nothing of data.

Source: LoRA (arXiv 2106.09685), rsLoRA (2312.03732: scaled by alpha / sqrt(rank)), DoRA
(2402.09353: size and direction apart), QLoRA (2305.14314: the base in 4 bits); as PEFT has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from genrec.errors import ModelError, RecipeError
from genrec.train.quantized import is_quantized, restore_base
from genrec.train.recipe import TrainRecipe

ROW_PARAMETER = "trainable_tokens_delta"
"""What PEFT calls the parameter that holds the token rows."""


def prepare_model(model: Any, recipe: TrainRecipe, row_ids: Sequence[int]) -> Any:
    """The model with what the recipe trains unfrozen: adapter and token rows, or everything.

    Args:
        model: the extended base model; changed in place.
        recipe: method, rank, alpha, dropout, target_modules, token_rows, seed.
        row_ids: the SID token ids, whose rows are trained as rows unless they are frozen; none
            where items are known by their titles.

    Raises:
        RecipeError: target_modules names no layer of this model.
        ModelError: the head has a bias, which PEFT's row training would drop.
    """
    if recipe.method == "full":
        model.requires_grad_(True)
        return model
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
        target_modules=_list_targets(recipe),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        trainable_token_indices=(
            _list_rows(model, row_ids) if recipe.token_rows == "train" and row_ids else None
        ),
    )
    set_seed(recipe.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(
            f"target_modules {recipe.target_modules!r} does not fit the base model "
            f"{type(model).__name__}: {error}; use all-linear, or names among "
            f"{', '.join(_list_linear(model))}"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # Updates far smaller than a weight vanish in bf16; the frozen weights may stay in it.
            parameter.data = parameter.data.float()
    return adapted


def _list_targets(recipe: TrainRecipe) -> str | list[str]:
    targets = recipe.target_modules
    if isinstance(targets, str):
        return targets if targets == "all-linear" else [targets]
    return list(targets)


def _list_rows(model: Any, row_ids: Sequence[int]) -> dict[str, list[int]]:
    """The rows to train by module name; a tied head follows its embedding without being named."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    rows = {names[id(embedding)]: list(row_ids)}
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"the head of {type(model).__name__} has a bias, which PEFT 0.21 leaves out when it "
            f"trains token rows; use method: full for this base model"
        )
    if head is not None and head.weight is not embedding.weight:
        rows[names[id(head)]] = list(row_ids)
    return rows


def _list_linear(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
        }
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def merge_adapter(model: Any) -> Any:
    """The plain Hugging Face model with adapter and token rows merged in; tied stays tied.

    A base in 4 bits is dequantized and merged in float32 on the CPU, and given back in the number
    type it had; its logits are those of the adapter on the dequantized base.
    """
    if isinstance(model, PeftModel):
        if is_quantized(model):
            dtype = model.get_base_model().dtype
            model = restore_base(model).merge_and_unload().to(dtype)
        else:
            model = model.merge_and_unload()
        model.tie_weights()
    model.config.use_cache = True
    return model.eval()

"""The models that `genrec bench train` trains: Qwen3 of any shape, random weights, LoRA as shipped.

Owns their shapes and their floating-point operations. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from genrec.recipe import read_recipe
from genrec.train.adapter import prepare_model
from genrec.train.recipe import TrainRecipe
from genrec.types import IndexArray

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
QWEN3_06B: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def build_lora(
    shape: dict[str, Any],
    vocabulary: int,
    row_ids: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """A Qwen3 model of this shape with the adapter of the shipped recipe `lora`.

    Dropout is off, so that ways of training the same can be compared by their loss.
    """
    recipe = read_recipe(TrainRecipe, "lora", ["dropout=0"], kind="train")
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(**shape, vocab_size=vocabulary, tie_word_embeddings=True)
    build: Any = Qwen3ForCausalLM
    with torch.device(device):
        model = build(config).to(dtype)
    return prepare_model(model, recipe, row_ids).to(device)


def count_flops(model: Any, lengths: IndexArray, n_targets: int) -> float:
    """The floating-point operations that a LoRA step over these rows cannot do without.

    Two a weight and token forward and two back to its input, for the weights of the layers over all
    tokens and of the head over the targets; two more for the gradient of an adapter's own weights.
    Attention is half of T x T, forward once and back twice.
    """
    config: Any = model.config
    weights = [
        weight
        for name, weight in model.named_parameters()
        if ".layers." in name and weight.ndim > 1
    ]
    frozen = sum(weight.numel() for weight in weights if not weight.requires_grad)
    adapter = sum(weight.numel() for weight in weights if weight.requires_grad)
    width = config.num_attention_heads * config.head_dim
    squares = float((lengths.astype(float) ** 2).sum()) / 2
    attention = 3 * 4 * squares * width * config.num_hidden_layers
    head = 4 * config.vocab_size * config.hidden_size * n_targets
    return float(lengths.sum() * (4 * frozen + 6 * adapter) + attention + head)

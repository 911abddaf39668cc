"""A model as it will be trained, on the `meta` device, where tensors have shapes and no content.

Owns how it is built from a config, and what a forward pass over it counts. Knows nothing of the
rest of a training run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoModelForCausalLM

from genrec.decode.soft_users import ignore_marks
from genrec.train.adapter import prepare_model
from genrec.train.checkpoint import choose_dtype, quiet_transformers
from genrec.train.recipe import TrainRecipe
from genrec.train.soft_users import TrainedUsers, attach_projector

ATTENTION = "genrec_outline"


@dataclass(frozen=True, slots=True)
class Batch:
    """The shape of one step's rows on one process.

    Attributes:
        n_rows: how many lines the batch has; one, if rows are packed.
        n_tokens: tokens a line.
        n_targets: positions of the batch that the head is run at.
    """

    n_rows: int
    n_tokens: int
    n_targets: int


def build_outline(
    config: Any,
    recipe: TrainRecipe,
    row_ids: list[int],
    n_tokenizer: int,
    soft: TrainedUsers | None = None,
) -> Any:
    """The model as it will be trained, on the meta device.

    Args:
        config: the base's.
        recipe: method and adapter.
        row_ids: the SID token ids.
        n_tokenizer: the vocabulary grows to it.
        soft: the users whom rows show as soft tokens; their projector is trained too.
    """
    with torch.device("meta"):
        return build_random(config, recipe, row_ids, n_tokenizer, soft)


def build_random(
    config: Any,
    recipe: TrainRecipe,
    row_ids: list[int],
    n_tokenizer: int,
    soft: TrainedUsers | None = None,
) -> Any:
    """The same on torch's own device, with weights by chance; arguments as for `build_outline`."""
    full = recipe.method == "full"
    dtype = torch.float32 if full else choose_dtype(recipe.precision)
    with quiet_transformers():
        # A copy, for resizing writes into it.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        if n_tokenizer > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(n_tokenizer, mean_resizing=False)
    prepared = prepare_model(model, recipe, row_ids)
    if soft is not None:
        attach_projector(prepared, soft)
    return prepared.train()


def run_outline(model: Any, batch: Batch) -> tuple[int, float]:
    """Bytes that a forward pass keeps for the backward one, and its operations.

    Args:
        model: from `build_outline`.
        batch: the shape of what goes in; soft tokens count as any other.
    """
    AttentionInterface.register(ATTENTION, _attend_outline)
    parameters = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if id(whole) not in parameters:
            kept[id(whole)] = whole  # held, so that no other gets its id
        return tensor

    shape = (batch.n_rows, batch.n_tokens)
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, _give_back),
            FlopCounterMode(display=False) as counter,
            ignore_marks(model),
        ):
            outputs = model(
                input_ids=torch.zeros(shape, dtype=torch.int64, device="meta"),
                position_ids=torch.zeros(shape, dtype=torch.int64, device="meta"),
                # Of four dimensions, so that transformers makes none of T x T.
                attention_mask=torch.ones(batch.n_rows, 1, 1, batch.n_tokens, device="meta").bool(),
                logits_to_keep=1,
                use_cache=False,
            )
        del outputs
    finally:
        model.config._attn_implementation = before
    bytes_kept = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    head = model.get_output_embeddings().weight
    extra_logits = 2 * (batch.n_targets - batch.n_rows) * head.shape[0] * head.shape[1]
    return bytes_kept, float(counter.get_total_flops() + extra_logits)


def _give_back(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Attention(torch.autograd.Function):
    """Attention as fast kernels have it: they keep what went in and out, and no T x T."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """The shape of the result."""
        found = torch.empty_like(query)
        context.save_for_backward(query, key, value, found)
        return found

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Never asked for."""
        raise AssertionError("an outline has no backward pass")


def _attend_outline(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    del module, attention_mask
    attend: Any = _Attention.apply
    found = attend(query, key, value)
    return found.transpose(1, 2), None

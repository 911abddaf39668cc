"""Decoder layers in 8-bit integers on CPU: quicker, approximate, and measured before use.

Owns the quantised layers and how far their rankings are from those of float32. Knows no files.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genrec.decode.soft_users import ignore_marks
from genrec.errors import ModelError

_log = logging.getLogger(__name__)
_K = 10
_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits, a scale a row, and inputs rounded as they come.

    Inputs of one call share one scale, so an answer depends a little on what runs beside it.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Round the weights of `layer`."""
        super().__init__()
        weight = layer.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        bias = None if layer.bias is None else layer.bias.detach().float()
        with warnings.catch_warnings():
            # torch 2.13 deprecates the maker of such tensors, but not the product that needs one.
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self._packed: Any = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, values: Tensor) -> Tensor:
        """The (..., out) products of (..., in) inputs, float32."""
        # Inputs of 7 bits: with 8, sums of pairs overflow on CPUs without VNNI.
        product: Tensor = torch.ops.quantized.linear_dynamic(values, self._packed, True)
        return product


@dataclass(frozen=True, slots=True)
class Int8Error:
    """How far rankings with 8-bit weights are from those with float32.

    Attributes:
        n_prompts: how many were compared.
        k: answers a prompt.
        overlap: the mean share of a list's items that the other list has.
        same_order: the share of lists that are the same.
    """

    n_prompts: int
    k: int
    overlap: float
    same_order: float


def quantize_engine(engine: Any, prompts: Sequence[Sequence[int]]) -> Int8Error:
    """Put the engine's decoder layers into 8 bits for good, and measure what that changes.

    The head keeps its weights: its few rows of codes decide the order. One log line says the error.

    Args:
        engine: a `TorchEngine` or `TitleEngine` over a float32 model on CPU, without adapters.
        prompts: to rank before and after, like those to come.

    Raises:
        ModelError: a model elsewhere or of other numbers, or without linear layers.
    """
    model = engine.model
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ModelError(
            f"int8 is for float32 models on CPU, and this one is {model.dtype} on {model.device}; "
            f"load it with device='cpu', or use bfloat16 on a GPU"
        )
    k = min(_K, engine.n_items)
    with ignore_marks(model):
        before = engine.rank_prompts(prompts, k).item_index
        if not _replace_layers(model.get_decoder()):
            raise ModelError(f"{type(model).__name__} has no linear layers to put into int8")
        after = engine.rank_prompts(prompts, k).item_index
    pairs = list(zip(before.tolist(), after.tolist(), strict=True))
    overlap = sum(len(set(one) & set(other)) for one, other in pairs) / (k * len(pairs))
    error = Int8Error(len(pairs), k, overlap, sum(a == b for a, b in pairs) / len(pairs))
    _log.warning(
        "int8: of the top %d of %d made-up histories, %.1f%% are those of float32, and %.0f%% of "
        "the lists are the same in order",
        k, error.n_prompts, 100 * error.overlap, 100 * error.same_order,
    )  # fmt: skip
    return error


def _replace_layers(module: nn.Module) -> int:
    """How many linear layers below a module were replaced."""
    n_replaced = 0
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
            n_replaced += 1
        else:
            n_replaced += _replace_layers(child)
    return n_replaced

"""Several processes that train one model.

Owns how they start, which ways of sharing a model genrec knows, and how the shares become one model
again. Knows nothing of rows, recipes' other values or artefacts.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from genrec.errors import ModelError

_TRUE = "true"
_ZERO_3 = 3


def start_processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; alone if none did.

    Raises:
        ModelError: they were to share the model in a way that genrec does not know.
    """
    # Without a GPU accelerate must be told, or every process takes itself for the only one.
    state = PartialState(cpu=not torch.cuda.is_available())
    asks_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == _TRUE
    if asks_fsdp and state.num_processes > 1:
        problems = []
        if os.environ.get("FSDP_VERSION", "1") != "2":
            problems.append("fsdp_version must be 2")
        if os.environ.get("FSDP_STATE_DICT_TYPE", "") != "FULL_STATE_DICT":
            problems.append("fsdp_state_dict_type must be FULL_STATE_DICT, which export needs")
        if state.distributed_type == DistributedType.MULTI_CPU:
            problems.append("accelerate 1.15 shards on GPUs only: use_cpu must be false")
        if problems:
            raise ModelError(
                f"genrec cannot train with this FSDP config: {'; '.join(problems)}; "
                f"start from train/accelerate/fsdp2.yaml"
            )
    return state


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole model: FSDP or ZeRO-3."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return bool(accelerator.deepspeed_plugin.zero_stage == _ZERO_3)
    return bool(kind == DistributedType.FSDP)


def copy_outline(model: nn.Module) -> nn.Module:
    """The same modules with parameters that take no memory, to be filled by `fill_outline`."""
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(
            torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, empty)


def fill_outline(outline: nn.Module, accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model as one, with the weights that the processes share; every process must call it.

    Only the main process's holds weights; the others' stays an outline.

    Args:
        outline: from `copy_outline`, before the model was shared out.
        accelerator: the run's.
        model: as the accelerator has prepared it.
    """
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        for name, parameter in outline.named_parameters():
            # Through `data`, so that a tied head goes on being the embedding's own parameter.
            parameter.data = weights[name].to(parameter.dtype)
    return outline


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a model, whole or shared out; frozen ones stay.

    Trainer's own loading under FSDP drops the second name of token rows that a tied head shares.

    Args:
        model: whose trained weights are set.
        checkpoint: the Trainer's, with safetensors files.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(path)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # PEFT leaves the adapter's name out of its files, and what follows it in DoRA's sizes.
        plain = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
        value = weights[name if name in weights else plain.replace(".default", "")]
        with torch.no_grad():
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                value = value.to(parameter.device)
                value = distribute_tensor(value, mesh, placements, src_data_rank=None)
            parameter.copy_(value)


@contextmanager
def keep_embeddings_together(model: Any) -> Iterator[None]:
    """A block in which accelerate leaves embedding and head in the model's outermost share.

    Each would get a share of its own; but token rows stand in both where the head is tied, and a
    parameter must not be in two.
    """
    model.get_input_embeddings = model.get_output_embeddings = _name_none
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def _name_none() -> None:
    return None

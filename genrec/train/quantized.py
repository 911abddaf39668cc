"""A base model in 4 bits (QLoRA), and the way back to whole numbers.

Owns how the base is quantized, who may do it, and how an adapter leaves a quantized base. Knows
nothing of what the adapter learns.

Source: QLoRA (arXiv 2305.14314): 4-bit NormalFloat, double quantization, LoRA on every linear
layer. Its paged optimizer is left out: an adapter's optimizer state is small.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from genrec.errors import ModelError
from genrec.train.checkpoint import quiet_transformers


def check_quantization() -> None:
    """Raise unless a base can be held in 4 bits here.

    Raises:
        ModelError: bitsandbytes is missing, or the processes would cut the weights into shards.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "method qlora needs bitsandbytes, which is not installed: "
            "pip install 'genrec[qlora]', or use method: lora"
        )
    kind = PartialState().distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ModelError(
            f"method qlora does not go with {kind.value}, which cuts weights into shards that "
            f"4-bit blocks do not survive; launch it with ddp.yaml (a 4-bit base a GPU), or use "
            f"method: lora"
        )


def quantize_base(dtype: torch.dtype) -> dict[str, Any]:
    """The words with which `from_pretrained` loads a base in 4 bits, computing in `dtype`.

    Embedding and head stay as they are, so that token rows are rows of whole numbers.
    """
    state = PartialState()
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        # Left alone, every process would load its copy onto the first GPU.
        "device_map": {"": state.device},
    }


def is_quantized(model: Any) -> bool:
    """Whether the model's base is held in 4 bits."""
    return getattr(model, "is_loaded_in_4bit", False) is True


def check_layers(model: Any) -> None:
    """Raise unless every layer in 4 bits can be made whole again.

    Raises:
        ModelError: the model's layers are transposed, and would come back the wrong way round.
    """
    if any(getattr(module, "source_cls", None) is Conv1D for module in model.modules()):
        raise ModelError(
            f"method qlora does not fit {type(model).__name__}, whose layers are transposed "
            f"(Conv1D): transformers would not turn them back; use method: lora for this base model"
        )


def restore_base(model: PeftModel) -> PeftModel:
    """The same adapter on its base in float32, on the CPU, where merging rounds nothing.

    A 4-bit layer can only be merged into another 4-bit layer, which loses what was learnt; so the
    adapter is taken off, the base is dequantized, and the adapter is put back.

    Args:
        model: a PEFT model whose base is quantized; it is used up.
    """
    config = model.peft_config["default"]
    learnt = {
        name: value.detach().cpu()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    with quiet_transformers():
        base = model.unload().dequantize(dtype=torch.float32).float().cpu()
    base.tie_weights()
    base.is_loaded_in_4bit = False
    restored = get_peft_model(base, config)
    set_peft_model_state_dict(restored, learnt)
    return restored

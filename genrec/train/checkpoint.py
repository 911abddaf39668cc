"""Opening the checkpoint that training starts from.

Owns which checkpoints are fit: decoder-only, with safe weights and a tokenizer that can pad and end
a row. Knows nothing of semantic IDs, adapters or the training loop.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as _untyped_logging

from genrec.errors import ModelError
from genrec.train.recipe import Precision

hf_logging: Any = _untyped_logging
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PROBE_TOKENS = 6
_PROBE_TOLERANCE = 1e-4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened base model; `source` is the hub name or directory it came from."""

    source: str
    model: Any
    tokenizer: Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A block in which transformers neither draws bars nor logs below errors."""
    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def choose_dtype(precision: Precision) -> torch.dtype:
    """The number type of the forward pass: bf16 where a GPU has it, else fp32, unless told."""
    if precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_checkpoint(base: str | Path, dtype: torch.dtype) -> Checkpoint:
    """The base model and its tokenizer, ready to be extended.

    Args:
        base: a hub name, a Hugging Face checkpoint directory, or a `genrec base` artefact.
        dtype: the number type of the weights in memory.

    Raises:
        ModelError: it cannot be reached or opened, is not decoder-only, or its tokenizer is unfit.
    """
    source = _locate_base(base)
    with quiet_transformers():
        _check_config(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"base model {source!r} cannot be opened: {_first_line(error)}; it needs a config, "
                f"*.safetensors weights (pickled ones are refused) and a tokenizer"
            ) from error
    _check_tokenizer(source, tokenizer)
    _check_causal(source, model)
    return Checkpoint(source, model, tokenizer)


def _locate_base(base: str | Path) -> str:
    text = str(base)
    if (Path(text) / "config.json").is_file():
        return text
    if Path(text).exists():
        raise ModelError(
            f"base model {text!r} is no Hugging Face checkpoint: it has no config.json; give a "
            f"directory written by save_pretrained or `genrec base`, or a hub name"
        )
    if isinstance(base, Path) or not _HUB_NAME.fullmatch(text):
        raise ModelError(
            f"base model {text!r} does not exist; give an existing checkpoint directory, or a hub "
            f"name such as Qwen/Qwen3-0.6B"
        )
    return text


def _check_config(source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"base model {source!r} cannot be reached: {_first_line(error)}; check the name, the "
            f"network and (for gated models) `hf auth login`, or download it elsewhere and give "
            f"its directory"
        ) from error
    way_out = "choose a decoder-only model, such as one of the Qwen3, Llama, Gemma or GPT-2 kind"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"base model {source!r} ({config.model_type}) is an encoder-decoder, but genrec trains "
            f"decoder-only language models; {way_out}"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"base model {source!r} ({config.model_type}) has no next-token head in transformers; "
            f"{way_out}"
        )


def _check_causal(source: str, model: Any) -> None:
    # Encoders such as BERT open as "CausalLM" too, with a warning; only behaviour tells them apart.
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    changed = ids.clone()
    changed[0, -1] = _PROBE_TOKENS
    model.eval()
    with torch.no_grad():
        before, after = (model(input_ids=x).logits[0, 0].float() for x in (ids, changed))
    if not torch.isfinite(before).all():
        raise ModelError(
            f"base model {source!r} gives logits that are not finite; its weights are broken, or "
            f"overflow in {model.dtype}: try precision: fp32"
        )
    # The same products in the same order: a causal model's first position does not move at all.
    if (before - after).abs().max() > _PROBE_TOLERANCE * before.std():
        raise ModelError(
            f"base model {source!r} ({model.config.model_type}) is not decoder-only: its first "
            f"position sees later tokens; choose a model of the Qwen3, Llama, Gemma or GPT-2 kind"
        )


def _check_tokenizer(source: str, tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"base model {source!r} has a slow tokenizer ({type(tokenizer).__name__}); genrec "
            f"needs a tokenizer.json, which `AutoTokenizer` writes when the tokenizers library can"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"base model {source!r} has no end-of-text token, so an answer could not end; set "
            f"eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked out everywhere, so the end token can stand in for it.
        tokenizer.pad_token = tokenizer.eos_token
        _log.info("train: %s has no pad token; its end token %s pads", source, tokenizer.eos_token)


def read_catalogue_digest(source: str) -> str | None:
    """The digest of the catalogue a genrec model was trained on; None for any other checkpoint."""
    path = Path(source) / "genrec.json"
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return str(values["catalogue_digest"])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

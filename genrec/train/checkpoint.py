"""Opening the checkpoint that training starts from.

Owns which checkpoints are fit: decoder-only, with safe weights and a tokenizer that can pad and end
a row; and merging one that is given as an adapter. Knows nothing of semantic IDs, of the adapter
that is trained, or of the training loop.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as _untyped_logging

from genrec.errors import ModelError, RecipeError
from genrec.manifest import read_json
from genrec.prompts.chat import ChatFrame, build_chat
from genrec.prompts.encode import find_end_token
from genrec.train.recipe import Precision, TrainRecipe

hf_logging: Any = _untyped_logging
ADAPTER_FILE = "adapter_config.json"
SETTINGS_FILE = "genrec.json"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PROBE_TOKENS = 6
_PROBE_TOLERANCE = 1e-4
_MOST_NAMED = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened base model.

    Attributes:
        source: the hub name or directory it came from.
        model: decoder-only, with a head.
        tokenizer: its fast tokenizer.
        chat: what its chat template puts around prompts; None for plain text.
    """

    source: str
    model: Any
    tokenizer: Any
    chat: ChatFrame | None = None


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
    """The number type of the forward pass: bf16 where a GPU has it, else fp32, unless told.

    Raises:
        RecipeError: fp16 without a GPU.
    """
    if precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError(
            "precision fp16 needs a CUDA GPU, whose loss scaler keeps its small range from "
            "overflowing, and there is none here; use precision: bf16, or fp32"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def load_checkpoint(
    base: str | Path, dtype: torch.dtype, quantization: Mapping[str, Any] | None = None
) -> Checkpoint:
    """The base model and its tokenizer, ready to be extended.

    Args:
        base: a hub name, a Hugging Face checkpoint directory, a `genrec base` artefact, or a
            directory with an adapter, which is merged into the base that it names.
        dtype: the number type of the weights in memory.
        quantization: further words for `from_pretrained`, from `quantized.quantize_base`.

    Raises:
        ModelError: it cannot be reached or opened, is not decoder-only, its tokenizer is unfit, or
            an adapter does not fit its base.
    """
    if _is_adapter(base):
        if quantization is not None:
            raise ModelError(
                f"base model {str(base)!r} is an adapter, which cannot be merged into a base in 4 "
                f"bits; give a merged checkpoint, or use method: lora"
            )
        return _load_adapter(Path(base), dtype)
    source = _locate_base(base)
    with quiet_transformers():
        _check_config(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **(quantization or {})
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"base model {source!r} cannot be opened: {_first_line(error)}; it needs a config, "
                f"*.safetensors weights (pickled ones are refused) and a tokenizer"
            ) from error
    _check_tokenizer(source, tokenizer)
    _check_causal(source, model)
    return Checkpoint(source, model, tokenizer)


def load_shape(base: str | Path) -> Checkpoint:
    """The base model without weights, on the meta device, and its tokenizer.

    Args:
        base: as for `load_checkpoint`; a directory needs no weights.

    Raises:
        ModelError: it cannot be reached, is not decoder-only, or its tokenizer is unfit.
    """
    if _is_adapter(base):
        return load_shape(_find_adapted(Path(base)))
    source = _locate_base(base)
    with quiet_transformers():
        _check_config(source)
        # transformers would make up a tokenizer without words where the files are missing.
        if Path(source).is_dir() and not (Path(source) / "tokenizer.json").is_file():
            raise ModelError(
                f"base model {source!r} has no tokenizer.json, which rows are counted with; put "
                f"tokenizer.json and tokenizer_config.json beside config.json"
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    _check_tokenizer(source, tokenizer)
    return Checkpoint(source, model, tokenizer)


def frame_prompts(checkpoint: Checkpoint, recipe: TrainRecipe) -> Checkpoint:
    """The checkpoint with its chat template's frame, where it has one and the recipe wants it.

    Its generation config then ends at the end of a turn too.

    Raises:
        RecipeError: a system message that the template refuses, or that has no place.
        ModelError: a template that does not show a message as it is.
    """
    chat = build_chat(checkpoint.tokenizer, recipe.system) if recipe.chat == "auto" else None
    if chat is None:
        return checkpoint
    _log.info(
        "train: prompts stand in the chat template of %s, and answers end with %s (chat: never "
        "gives plain text)",
        checkpoint.source,
        chat.end,
    )
    settings = checkpoint.model.generation_config
    if settings is not None:
        known = settings.eos_token_id
        known = known if isinstance(known, list) else [checkpoint.tokenizer.eos_token_id]
        end = find_end_token(checkpoint.tokenizer, chat)
        settings.eos_token_id = list(dict.fromkeys([end, *known]))
    return replace(checkpoint, chat=chat)


def _is_adapter(base: str | Path) -> bool:
    return (Path(base) / ADAPTER_FILE).is_file() and not (Path(base) / "config.json").is_file()


def _load_adapter(adapter: Path, dtype: torch.dtype) -> Checkpoint:
    """The adapter's base with the adapter merged into it."""
    name = _find_adapted(adapter)
    try:
        checkpoint = load_checkpoint(name, dtype)
    except ModelError as error:
        raise ModelError(
            f"base model {str(adapter)!r} is an adapter over {name!r}, which cannot be opened "
            f"({error}); put that model there, or merge the adapter where it is and give the result"
        ) from error
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    try:
        with quiet_transformers():
            if (adapter / "tokenizer_config.json").is_file():
                tokenizer = AutoTokenizer.from_pretrained(adapter)
                if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
                    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                adapted = PeftModel.from_pretrained(model, adapter)
            strange = _find_strange(adapted, adapter)
            merged = adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        strange = [_first_line(error)]
    if strange:
        raise ModelError(
            f"adapter {str(adapter)!r} does not fit {name!r}, the base that it names: "
            f"{', '.join(strange[:_MOST_NAMED])}; it was made for another architecture or "
            f"vocabulary: correct base_model_name_or_path in its {ADAPTER_FILE}, or give the base "
            f"itself"
        )
    merged.tie_weights()
    _check_tokenizer(str(adapter), tokenizer)
    _log.info("train: the adapter %s is merged into its base %s", adapter, name)
    return Checkpoint(str(adapter), merged, tokenizer)


def _find_adapted(adapter: Path) -> str:
    """The base that an adapter names, as a path beside it where there is one."""
    if (adapter.parent / SETTINGS_FILE).is_file():
        raise ModelError(
            f"base model {str(adapter)!r} is the adapter of a genrec model; give "
            f"{str(adapter.parent)!r}, which has it merged already"
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"base model {str(adapter)!r} is an adapter without adapter_model.safetensors (pickled "
            f"weights are refused); save it with PEFT's save_pretrained"
        )
    name = read_json(adapter / ADAPTER_FILE).get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"base model {str(adapter)!r} is an adapter that names no base model; write it into "
            f"base_model_name_or_path of its {ADAPTER_FILE}, or give the base itself"
        )
    beside = adapter / name
    return str(beside if (beside / "config.json").is_file() else name)


def _find_strange(adapted: PeftModel, adapter: Path) -> list[str]:
    """Weights of the adapter that its base has no place for, and places that it has none for."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as weights:
        found = set(weights.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    extra = sorted(name for name in found - wanted if ".lora_" in name)
    return [f"no layer for {name}" for name in extra] + [
        f"no weights for {name}" for name in sorted(wanted - found)
    ]


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
    value = read_settings(source).get("catalogue_digest")
    return None if value is None else str(value)


def read_settings(source: str) -> dict[str, Any]:
    """What `genrec.json` says of a genrec model; empty for any other checkpoint.

    For an adapter it is what that of its base says.
    """
    if _is_adapter(source):
        source = _find_adapted(Path(source))
    path = Path(source) / SETTINGS_FILE
    return read_json(path) if path.is_file() else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""An adapter taken apart: its base with the trained token rows, and the LoRA weights alone.

Owns `base/` and `lora/` of a model directory. Together they give the merged model's logits; apart,
one base serves several adapters. Knows nothing of items.

vLLM 0.32 takes a LoRA directory only if it holds nothing but LoRA weights: adapters with token rows
(`unsupported LoRA weight`) and DoRA are refused, rank-stabilised scaling is honoured.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import save_file

from genrec.manifest import MANIFEST, hash_file, read_json, write_json
from genrec.recipe import hash_values
from genrec.train.quantized import is_quantized, restore_base

BASE_FOLDER = "base"
LORA_FOLDER = "lora"
ADAPTER_FOLDER = "adapter"
_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_log = logging.getLogger(__name__)


def split_adapter(model: PeftModel, tokenizer: Any, out: Path) -> PeftModel:
    """The same model over a base that holds the token rows, after writing `base/` and `lora/`.

    Args:
        model: as trained; it is used up.
        tokenizer: the extended tokenizer, for `base/`.
        out: the model directory.
    """
    if is_quantized(model):
        model = restore_base(model)
    write_delta(model, out / BASE_FOLDER, out / LORA_FOLDER)
    plain = _merge_rows(model)
    plain.save_pretrained(str(out / BASE_FOLDER))
    tokenizer.save_pretrained(str(out / BASE_FOLDER))
    size_bytes = sum(path.stat().st_size for path in (out / BASE_FOLDER).iterdir())
    _log.info("train: base/ is a copy of the whole base, %.1f MB", size_bytes / 1e6)
    return PeftModel.from_pretrained(plain, str(out / LORA_FOLDER))


def write_delta(model: PeftModel, base: str | Path, out: Path) -> None:
    """Write the LoRA weights without the token rows, as a directory that PEFT and vLLM open.

    Args:
        model: as trained.
        base: the checkpoint that they belong to; a hub name, or a directory.
        out: the directory to write.
    """
    weights = {
        name: value.detach().float().cpu().contiguous()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if ".lora_" in name
    }
    config = copy.copy(model.peft_config["default"])
    config.trainable_token_indices = None
    config.base_model_name_or_path = locate_base(base)
    config.inference_mode = True
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / _WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(out))


def point_delta(out: Path) -> None:
    """Let `lora/` name the `base/` beside it, in a directory that holds both."""
    path = out / LORA_FOLDER / _CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"base_model_name_or_path": locate_base(out / BASE_FOLDER)})


def locate_base(base: str | Path) -> str:
    """A hub name as it is, and a directory by its whole path.

    PEFT and transformers read a relative path from the working directory, not from the file that
    holds it, and `runs/base` could be a hub name too. vLLM does not read it at all.
    """
    return str(Path(base).resolve()) if isinstance(base, Path) or Path(base).is_dir() else base


def digest_weights(folder: str | Path) -> str | None:
    """The sha256 over a checkpoint directory's weights, wherever it lies; None where it has none.

    An artefact's manifest knows its files; others are read.
    """
    folder = Path(folder)
    for home, prefix in ((folder, ""), (folder.parent, f"{folder.name}/")):
        files = read_json(home / MANIFEST).get("files", {}) if (home / MANIFEST).is_file() else {}
        hashes = {
            name.removeprefix(prefix): record["sha256"]
            for name, record in files.items()
            if Path(name).parent == Path(prefix) and name.endswith(".safetensors")
        }
        if hashes:
            return hash_values(hashes)
    hashes = {path.name: hash_file(path) for path in folder.glob("*.safetensors")}
    return hash_values(hashes) if hashes else None


def _merge_rows(model: PeftModel) -> Any:
    """The plain base with the trained token rows in it; a tied head stays tied."""
    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer) and layer.tied_adapter is None:
            layer.merge()
    plain = model.unload()
    plain.tie_weights()
    return plain

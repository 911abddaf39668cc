"""A model directory's weights in memory, by themselves or as a base with adapters over it.

Owns which directories belong together: the same weights below, the same items, the same prompts.
Knows no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from genrec.artifact import load_artifact
from genrec.decode.adapters import Adapters, find_adapters
from genrec.decode.soft_users import FOLDER as SOFT_USERS
from genrec.errors import ArtifactError, ModelError, RecipeError, join_problems
from genrec.manifest import hash_file, read_json
from genrec.recipe import suggest_name
from genrec.train.checkpoint import SETTINGS_FILE
from genrec.train.delta import ADAPTER_FOLDER, BASE_FOLDER, LORA_FOLDER, digest_weights
from genrec.train.export import RECOMMEND_FILE

_SHARED_SETTINGS = {
    "catalogue_digest": "other items or semantic IDs (after `genrec tokenize apply`, apply it to "
    "the adapter too)",
    "codebook_sizes": "other semantic-ID tokens",
    "user_digest": "other users",
    "chat": "another chat template",
    "align": "another alignment of prompts (align)",
}
"""What a model and its adapters must agree on, and what it means where they do not."""


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A model directory as a base and adapters over it.

    Attributes:
        base: a checkpoint directory.
        own: the adapter that makes it the model as trained; None where the base is that.
        folders: LoRA directories by the names that requests say.
    """

    base: Path
    own: Path | None
    folders: Mapping[str, Path]


def load_weights(
    path: Path,
    device: str | None = None,
    dtype: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> Any:
    """The model of a directory, ready to answer; `decode.adapters.find_adapters` finds adapters.

    Args:
        path: the model artefact.
        device: `cpu`, `cuda`, `cuda:1`, ...; the GPU if there is one when unset.
        dtype: `float32`, `bfloat16`, or `int8`, which is loaded as float32 for `decode.int8`;
            float32 on CPU and bfloat16 on GPU when unset.
        adapters: model directories of adapters over the same base, by name.

    Raises:
        ModelError: an adapter of another model.
        RecipeError: no such dtype, or int8 with adapters or a GPU.
    """
    device, weights = choose_numbers(device, dtype)
    if dtype == "int8" and adapters:
        raise RecipeError("dtype 'int8' runs without adapters; use float32 or bfloat16 with them")
    found = find_adapted(path, adapters) if adapters else AdaptedModel(path, None, {})
    disable_progress_bar()  # transformers draws one for each load, terminal or not
    model: Any = AutoModelForCausalLM.from_pretrained(found.base, dtype=weights)
    model.eval().to(device)
    if found.folders:
        Adapters(model, found.own, found.folders)
    return model


def find_adapted(model: Path, adapters: Mapping[str, str | Path]) -> AdaptedModel:
    """What a model and adapters over it are made of, after checking that they belong together.

    Args:
        model: the model artefact: one with a `base/`, one that is itself an adapter over another's
            `base/`, or one whose merged checkpoint the adapters were trained over.
        adapters: by name the model directories of adapters, or the `lora/` inside of them.

    Raises:
        ModelError: no base, or adapters that are not of this model; all of them in one message.
    """
    base, own = _find_base(model)
    below = digest_weights(base)
    folders, problems = {}, []
    for name, path in adapters.items():
        home = find_home(Path(path))
        folders[name] = _find_folder(home)
        problems += [
            f"adapter {name!r} ({path}): {fault}"
            for fault in _find_faults(model, base, below, home)
        ]
    if problems:
        raise ModelError(join_problems(f"adapters that are not of the model {model}", problems))
    return AdaptedModel(base, own, folders)


def read_domains(adapters: Mapping[str, Path]) -> dict[str, list[str]]:
    """The names of the adapters that were tuned for each domain."""
    found: dict[str, list[str]] = {}
    for name, path in adapters.items():
        file = find_home(path) / SETTINGS_FILE
        domain = read_json(file).get("domain") if file.is_file() else None
        if domain is not None:
            found.setdefault(str(domain), []).append(name)
    return found


def find_home(adapter: Path) -> Path:
    """The model directory of an adapter that is given by it or by the `lora/` inside of it."""
    return adapter if (adapter / SETTINGS_FILE).is_file() else adapter.parent


def find_switch(engine: object) -> Adapters | None:
    """The adapters over the model that an engine runs; None without any."""
    model = getattr(engine, "model", None)  # an engine that runs elsewhere has none
    return None if model is None else find_adapters(model)


def use_adapter(engine: object, name: str | None) -> AbstractContextManager[None]:
    """A block in which an engine answers with an adapter; None is the model as trained.

    Raises:
        RecipeError: it has none of that name.
    """
    found = find_switch(engine)
    known = () if found is None else found.names
    if name is not None and name not in known:
        raise RecipeError(
            f"unknown adapter {name!r}; {suggest_name(name, known)}"
            if known
            else f"adapter {name!r} was asked for, and none was loaded; open the model with "
            f"adapters={{{name!r}: PATH}}"
        )
    return nullcontext() if found is None else found.use(name)


def choose_numbers(device: str | None, dtype: str | None) -> tuple[str, torch.dtype]:
    """Where weights go, and as which numbers they are loaded; int8 is rounded from float32.

    Args:
        device: None takes the GPU if there is one, and the CPU for int8.
        dtype: None takes float32 on CPU and bfloat16 on GPU.

    Raises:
        RecipeError: no such dtype, or int8 elsewhere than on CPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() and dtype != "int8" else "cpu")
    if dtype == "int8" and device != "cpu":
        raise RecipeError(f"dtype 'int8' runs on CPU, not on {device}; use bfloat16 there")
    return device, parse_dtype(dtype or ("float32" if device == "cpu" else "bfloat16"))


def parse_dtype(name: str) -> torch.dtype:
    """The number type of that name.

    Raises:
        RecipeError: none has it.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    known["int8"] = torch.float32  # what it is rounded from
    if name not in known:
        raise RecipeError(f"unknown dtype {name!r}; {suggest_name(name, known)}")
    return known[name]


def _find_base(model: Path) -> tuple[Path, Path | None]:
    """The checkpoint below a model, and the adapter over it that makes it the model as trained."""
    if (model / SOFT_USERS).is_dir():
        raise ModelError(
            f"the model {model} shows users as soft tokens, whose projector belongs to one set of "
            f"weights; serve it without --adapter"
        )
    own = model / LORA_FOLDER
    if (model / BASE_FOLDER / "config.json").is_file():
        return model / BASE_FOLDER, own
    if not own.is_dir():
        return model, None
    settings = read_json(model / SETTINGS_FILE)
    base = Path(str(settings.get("base")))
    if not (base / "config.json").is_file():
        raise ModelError(
            f"the model {model} is an adapter over {base}, which is not there, and other adapters "
            f"need that base too; give the model directory that holds it"
        )
    if settings.get("base_weights") != digest_weights(base):
        raise ModelError(
            f"the model {model} is an adapter over {base}, whose weights have changed since; train "
            f"the adapter again, or restore the base"
        )
    return base, own


def _find_folder(home: Path) -> Path:
    """Where a model directory has its adapter: DoRA over frozen rows is written as trained."""
    lora = home / LORA_FOLDER
    return lora if lora.is_dir() else home / ADAPTER_FOLDER


def _find_faults(model: Path, base: Path, below: str | None, home: Path) -> Iterator[str]:
    """Why an adapter's directory does not go with a model, one sentence each."""
    if not (home / SETTINGS_FILE).is_file():
        yield "it is no model directory of `genrec train`; give one, or the lora/ inside of it"
        return
    if not _find_folder(home).is_dir():
        yield (
            "it holds no adapter; train one with method: lora and token_rows: frozen over this "
            "model"
        )
        return
    yield from _find_changes(home)
    if (home / SOFT_USERS).is_dir():
        yield "it shows users as soft tokens; serve its own model directory by itself"
    ours, theirs = read_json(model / SETTINGS_FILE), read_json(home / SETTINGS_FILE)
    if theirs.get("base_weights") != below or below is None:
        yield (
            f"it was trained over {theirs.get('base')}, whose weights are not those of {base}; "
            f"train it with token_rows: frozen and --base {model}"
        )
    for name, meaning in _SHARED_SETTINGS.items():
        if ours.get(name) != theirs.get(name):
            yield f"it has {meaning}"
    if _read_vocabulary(model) != _read_vocabulary(home):
        yield "its tokenizer has another vocabulary"
    if read_json(model / RECOMMEND_FILE) != read_json(home / RECOMMEND_FILE):
        yield (
            f"it was trained with another prompt ({RECOMMEND_FILE}); train it on the same "
            f"instructions"
        )


def _find_changes(home: Path) -> Iterator[str]:
    """What is wrong with an adapter's artefact; of its weights only the adapter's are read."""
    try:
        artifact = load_artifact(home, step="train", verify=False)
    except ArtifactError as error:
        yield str(error)
        return
    folder = _find_folder(home).name
    for name, record in artifact.manifest.files.items():
        if name.startswith(f"{folder}/") and hash_file(home / name) != record.sha256:
            yield f"{name} was changed since it was trained; restore it, or train again"


def _read_vocabulary(folder: Path) -> object:
    tokenizer = read_json(folder / "tokenizer.json")
    return tokenizer.get("model"), tokenizer.get("added_tokens")

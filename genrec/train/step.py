"""The `train` step: instructions and a base model in, a model directory out.

Owns the order of things, and which process writes. Everything else is in the modules it calls.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from genrec.artifact import Artifact, check_input, load_artifact, write_artifact
from genrec.errors import ModelError, RecipeError
from genrec.manifest import MANIFEST, write_json
from genrec.train.adapter import count_parameters, prepare_model
from genrec.train.checkpoint import (
    Checkpoint,
    choose_dtype,
    load_checkpoint,
    read_catalogue_digest,
)
from genrec.train.export import Catalogue, export_model, read_catalogue
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows, encode_rows
from genrec.train.settings import CHECKPOINTS
from genrec.train.sft import TrainedModel, train_rows
from genrec.train.vocabulary import extend_vocabulary

_BASE_FILE = ".base.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The artefacts that training reads; `base` only if it is one."""

    data: Artifact
    tokenize: Artifact
    prompts: Artifact
    base: Artifact | None

    def by_role(self) -> dict[str, Artifact]:
        """As the manifest keeps them."""
        roles = {"data": self.data, "tokenize": self.tokenize, "prompts": self.prompts}
        return roles | ({"base": self.base} if self.base is not None else {})


def make_model(
    recipe: TrainRecipe,
    base: str | Path | None,
    instructions: Path,
    tokenizer: Path,
    data: Path,
    out: Path,
) -> Artifact:
    """Tune a base model on instructions and export it, resuming a killed run of the same recipe.

    Under `accelerate launch` every process calls this; one of them writes.

    Args:
        recipe: all settings.
        base: hub name, checkpoint directory or base artefact; None takes the recipe's.
        instructions: the prompts step's artefact.
        tokenizer: the tokenize step's artefact that the instructions were made with.
        data: the data step's artefact.
        out: the model directory.

    Raises:
        ArtifactError: an input is missing, or the inputs do not belong together.
        RecipeError: no base is given, or a value does not fit the base.
        ModelError: the base is unfit, the loss is not finite, or memory runs out.
        DataError: there is nothing to train on.
    """
    base = base or recipe.base
    if base is None:
        raise RecipeError(
            "no base model: run `genrec base` and give its directory, or set base: in the train "
            "recipe to a checkpoint directory or a hub name such as Qwen/Qwen3-0.6B"
        )
    inputs = _load_inputs(recipe, base, instructions, tokenizer, data)
    catalogue = read_catalogue(data, tokenizer, _read_codebook_sizes(tokenizer))
    checkpoint = _open_base(base, recipe, catalogue)
    extension = extend_vocabulary(
        checkpoint.model,
        checkpoint.tokenizer,
        catalogue.codebook_sizes,
        catalogue.texts,
        catalogue.codes,
        noise=recipe.row_noise,
        seed=recipe.seed,
    )
    rows, valid_rows = _encode_splits(recipe, checkpoint, instructions)
    model = prepare_model(checkpoint.model, recipe, extension.flat_ids())
    with _write_shared(out, recipe, inputs) as (folder, facts):
        _forget_other_base(folder, checkpoint.source)
        trained = train_rows(
            model, checkpoint.tokenizer.pad_token_id, rows, valid_rows, recipe, folder
        )
        facts.update(_describe(trained, checkpoint, recipe, rows))
        if PartialState().is_main_process:
            _export(trained, checkpoint, catalogue, inputs, recipe, folder)
    return load_artifact(out, step="train", verify=False)


def _load_inputs(
    recipe: TrainRecipe, base: str | Path, instructions: Path, tokenizer: Path, data: Path
) -> _Inputs:
    is_artifact = str(base) != recipe.base and (Path(base) / MANIFEST).is_file()
    inputs = _Inputs(
        data=load_artifact(data, step="data"),
        tokenize=load_artifact(tokenizer, step="tokenize"),
        prompts=load_artifact(instructions, step="prompts"),
        base=load_artifact(base) if is_artifact else None,
    )
    check_input(inputs.prompts, "data", inputs.data)
    check_input(inputs.prompts, "tokenize", inputs.tokenize)
    return inputs


def _read_codebook_sizes(tokenizer: Path) -> list[int]:
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    return [int(size) for size in config["codebook_sizes"]]


def _open_base(base: str | Path, recipe: TrainRecipe, catalogue: Catalogue) -> Checkpoint:
    dtype = choose_dtype(recipe.precision)
    # Full tuning keeps fp32 master weights under autocast; LoRA leaves the frozen ones in bf16.
    checkpoint = load_checkpoint(base, torch.float32 if recipe.method == "full" else dtype)
    digest = read_catalogue_digest(checkpoint.source)
    if digest is not None and digest != catalogue.digest:
        raise ModelError(
            f"base model {checkpoint.source!r} was trained by genrec on another catalogue, whose "
            f"semantic IDs mean other items; start from the model before that, or use the "
            f"tokenizer artefact it was trained with"
        )
    return checkpoint


def _encode_splits(
    recipe: TrainRecipe, checkpoint: Checkpoint, instructions: Path
) -> tuple[EncodedRows, EncodedRows | None]:
    tokenizer = checkpoint.tokenizer
    rows = encode_rows(
        tokenizer, _load_split(instructions / "train"), recipe.max_tokens, "training"
    )
    valid = _load_split(instructions / "valid")
    if len(valid) == 0 or recipe.eval_every == 0:
        _log.info("train: no validation; the last weights are kept")
        return rows, None
    if len(valid) > recipe.eval_rows:
        random = np.random.default_rng(recipe.seed)
        chosen = random.choice(len(valid), size=recipe.eval_rows, replace=False)
        valid = valid.select(np.sort(chosen))
    encoded = encode_rows(tokenizer, valid, recipe.max_tokens, "validation")
    return rows, encoded.select(np.argsort(encoded.lengths, kind="stable"))


def _load_split(folder: Path) -> Any:
    """The split's `datasets.Dataset`; an empty list where it has no rows."""
    from datasets import load_from_disk  # noqa: PLC0415  (slow to import, needed only here)

    # datasets 5.2 writes a data set of no rows without files, and then cannot open it.
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return load_from_disk(str(folder)) if state["_data_files"] else []


@contextmanager
def _write_shared(
    out: Path, recipe: TrainRecipe, inputs: _Inputs
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The artefact's directory for every process; only the main one makes and finishes it."""
    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
        yield out, {}
        state.wait_for_everyone()
        state.wait_for_everyone()
        return
    writer = write_artifact(
        out, step="train", recipe=recipe, inputs=inputs.by_role(), resumable=True
    )
    with writer as work:
        state.wait_for_everyone()
        yield work.path, work.facts
        state.wait_for_everyone()
        shutil.rmtree(work.path / CHECKPOINTS, ignore_errors=True)
        (work.path / _BASE_FILE).unlink(missing_ok=True)
    state.wait_for_everyone()


def _forget_other_base(folder: Path, source: str) -> None:
    """Remove the checkpoints of a run from another base, which the recipe need not name."""
    state = PartialState()
    if state.is_main_process:
        path = folder / _BASE_FILE
        values = {"base": str(Path(source).resolve()) if Path(source).exists() else source}
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != values:
            _log.info("train: the unfinished run had another base model; starting clean")
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        write_json(path, values)
    state.wait_for_everyone()


def _describe(
    trained: TrainedModel, checkpoint: Checkpoint, recipe: TrainRecipe, rows: EncodedRows
) -> dict[str, Any]:
    total, trainable = count_parameters(trained.model)
    _log.info(
        "train: %d updates, %d tokens, %.0f tokens/s, %d of %d parameters trained",
        trained.updates,
        trained.tokens,
        trained.tokens_per_second,
        trainable,
        total,
    )
    return {
        "base": checkpoint.source,
        "method": recipe.method,
        "rows": len(rows),
        "updates": trained.updates,
        "tokens": trained.tokens,
        "tokens_per_second": round(trained.tokens_per_second, 1),
        "best_eval_loss": trained.best_eval_loss,
        "parameters": total,
        "trained_parameters": trainable,
    }


def _export(
    trained: TrainedModel,
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    inputs: _Inputs,
    recipe: TrainRecipe,
    folder: Path,
) -> None:
    settings = {
        "base": checkpoint.source,
        "method": recipe.method,
        "data_digest": inputs.data.manifest.digest,
        "tokenizer_digest": inputs.tokenize.manifest.digest,
    }
    export_model(trained.model, checkpoint.tokenizer, catalogue, inputs.prompts, settings, folder)

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

import torch
from accelerate import PartialState

from genrec.artifact import Artifact, check_input, load_artifact, write_artifact
from genrec.decode.align import find_padding
from genrec.decode.soft_users import detach_users, save_users
from genrec.errors import ModelError, RecipeError
from genrec.manifest import MANIFEST, write_json
from genrec.prompts.render import USERS_FILE
from genrec.train.adapter import count_parameters, prepare_model
from genrec.train.checkpoint import (
    Checkpoint,
    choose_dtype,
    frame_prompts,
    load_checkpoint,
    read_catalogue_digest,
    read_settings,
)
from genrec.train.delta import BASE_FOLDER, digest_weights, locate_base
from genrec.train.export import (
    Account,
    Catalogue,
    export_model,
    read_catalogue,
    read_codebook_sizes,
)
from genrec.train.monitor import check_trackers
from genrec.train.out_of_memory import name_run
from genrec.train.processes import start_processes
from genrec.train.quantized import check_layers, check_quantization, quantize_base
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows
from genrec.train.settings import CHECKPOINTS, name_score
from genrec.train.sft import TrainedModel, train_rows
from genrec.train.soft_users import (
    TrainedUsers,
    add_mark,
    add_projector,
    check_soft_users,
    read_soft_users,
)
from genrec.train.splits import encode_splits
from genrec.train.stopping import StopMetric, ask_users, build_trie
from genrec.train.users import UserVocabulary, read_users
from genrec.train.vocabulary import Extension, extend_vocabulary

_BASE_FILE = ".base.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The artefacts that training reads; `base` only if it is one, `user_vectors` if given."""

    data: Artifact
    tokenize: Artifact
    prompts: Artifact
    base: Artifact | None
    user_vectors: Artifact | None

    def by_role(self) -> dict[str, Artifact]:
        """As the manifest keeps them."""
        roles = {"data": self.data, "tokenize": self.tokenize, "prompts": self.prompts}
        more = {"base": self.base, "user_vectors": self.user_vectors}
        return roles | {role: artifact for role, artifact in more.items() if artifact is not None}


def make_model(
    recipe: TrainRecipe,
    base: str | Path | None,
    instructions: Path,
    tokenizer: Path,
    data: Path,
    out: Path,
    *,
    user_vectors: Path | None = None,
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
        user_vectors: an embeddings artefact of the data's users, for soft_user_tokens.

    Raises:
        ArtifactError: an input is missing, or the inputs do not belong together.
        RecipeError: no base is given, or a value does not fit the base.
        ModelError: the base is unfit, the loss is not finite, or memory runs out.
        DataError: there is nothing to train on.
    """
    start_processes()
    base = base or recipe.base
    if base is None:
        raise RecipeError(
            "no base model: run `genrec base` and give its directory, or set base: in the train "
            "recipe to a checkpoint directory or a hub name such as Qwen/Qwen3-0.6B"
        )
    check_trackers(recipe.report_to)
    choose_dtype(recipe.precision)
    inputs = _load_inputs(recipe, base, instructions, tokenizer, data, user_vectors)
    check_soft_users(recipe, inputs.prompts, user_vectors)
    catalogue = read_catalogue(data, tokenizer, read_codebook_sizes(tokenizer))
    users = read_users(instructions, inputs.data)
    checkpoint = _open_base(choose_base(base, recipe), recipe, catalogue, users)
    extension = extend_vocabulary(
        checkpoint.model,
        checkpoint.tokenizer,
        catalogue.codebook_sizes,
        catalogue.texts,
        catalogue.codes,
        noise=recipe.row_noise,
        seed=recipe.seed,
        users=users,
    )
    check_rows(recipe, checkpoint.source, is_new=extension.is_new)
    soft = None
    if user_vectors is not None:
        soft = read_soft_users(recipe, checkpoint.tokenizer, data, user_vectors)
        add_mark(checkpoint.model, checkpoint.tokenizer, soft)
    rows, valid_rows = encode_splits(recipe, checkpoint, instructions, soft)
    model = prepare_model(checkpoint.model, recipe, extension.flat_ids())
    if soft is not None:
        add_projector(model, soft, recipe.seed)
    stop = _build_stop(recipe, model, checkpoint, extension, catalogue, inputs, soft)
    with _write_shared(out, recipe, inputs) as (folder, facts):
        _forget_other_base(folder, checkpoint.source)
        trained = train_rows(
            model, checkpoint.tokenizer.pad_token_id, rows, valid_rows, recipe, folder, stop, soft
        )
        facts.update(_describe(trained, checkpoint, inputs, recipe, rows))
        if PartialState().is_main_process:
            if users is not None:
                shutil.copyfile(instructions / USERS_FILE, folder / USERS_FILE)
            if soft is not None:
                _write_soft_users(trained.model, soft, folder)
            account = Account(_choose_settings(checkpoint, inputs, recipe, users), recipe, facts)
            export_model(
                trained.model, checkpoint.tokenizer, catalogue, inputs.prompts, account, folder
            )
    return load_artifact(out, step="train", verify=False)


def _load_inputs(
    recipe: TrainRecipe,
    base: str | Path,
    instructions: Path,
    tokenizer: Path,
    data: Path,
    user_vectors: Path | None,
) -> _Inputs:
    is_artifact = str(base) != recipe.base and (Path(base) / MANIFEST).is_file()
    inputs = _Inputs(
        data=load_artifact(data, step="data"),
        tokenize=load_artifact(tokenizer, step="tokenize"),
        prompts=load_artifact(instructions, step="prompts"),
        base=load_artifact(base) if is_artifact else None,
        user_vectors=load_artifact(user_vectors, step="embed") if user_vectors else None,
    )
    check_input(inputs.prompts, "data", inputs.data)
    check_input(inputs.prompts, "tokenize", inputs.tokenize)
    return inputs


def choose_base(base: str | Path, recipe: TrainRecipe) -> str | Path:
    """What to start from: of a model directory its `base/`, for an adapter over frozen rows.

    Args:
        base: as given.
        recipe: token_rows.
    """
    if recipe.token_rows != "frozen":
        return base
    inner = Path(base) / BASE_FOLDER
    chosen = inner if (inner / "config.json").is_file() else base
    _log.info("train: the adapter builds on %s, whose token rows stay as they are", chosen)
    return chosen


def check_rows(recipe: TrainRecipe, source: str, *, is_new: bool) -> None:
    """Raise where frozen token rows are rows that nothing has trained.

    Args:
        recipe: token_rows.
        source: the base, for the message.
        is_new: whether it lacked any of the tokens.

    Raises:
        ModelError: it did, and they would stay as they start.
    """
    if recipe.token_rows == "frozen" and is_new:
        raise ModelError(
            f"token_rows: frozen needs a base that has learnt the semantic-ID tokens, and "
            f"{source!r} lacks them; train it first with export_base: true and give "
            f"that directory, or set token_rows: train"
        )


def _open_base(
    base: str | Path, recipe: TrainRecipe, catalogue: Catalogue, users: UserVocabulary | None
) -> Checkpoint:
    dtype = choose_dtype(recipe.precision)
    if recipe.method == "qlora":
        check_quantization()
        checkpoint = load_checkpoint(base, dtype, quantize_base(dtype))
        check_layers(checkpoint.model)
    else:
        # Full tuning keeps fp32 master weights under autocast; LoRA's frozen ones may be in bf16.
        checkpoint = load_checkpoint(base, torch.float32 if recipe.method == "full" else dtype)
    digest = read_catalogue_digest(checkpoint.source)
    if digest is not None and digest != catalogue.digest:
        raise ModelError(
            f"base model {checkpoint.source!r} was trained by genrec on another catalogue, whose "
            f"semantic IDs mean other items; start from the model before that, or use the "
            f"tokenizer artefact it was trained with"
        )
    named = read_settings(checkpoint.source).get("user_digest")
    if users is not None and named is not None and named != users.digest:
        raise ModelError(
            f"base model {checkpoint.source!r} was trained by genrec on other users, whom its user "
            f"tokens mean; start from the model before that, or use the users' tokenizer it was "
            f"trained with"
        )
    return frame_prompts(checkpoint, recipe)


def _build_stop(
    recipe: TrainRecipe,
    model: Any,
    checkpoint: Checkpoint,
    extension: Extension,
    catalogue: Catalogue,
    inputs: _Inputs,
    soft: TrainedUsers | None,
) -> StopMetric | None:
    """What early stopping goes by besides the loss; None where it is the loss."""
    if recipe.stop_metric == "loss":
        return None
    questions = ask_users(
        recipe,
        inputs.data,
        inputs.prompts.path,
        catalogue,
        checkpoint.tokenizer,
        chat=checkpoint.chat,
        vectors=None if soft is None else soft.known,
    )
    trie = build_trie(inputs.prompts.path, catalogue, checkpoint.tokenizer, checkpoint.chat)
    return StopMetric(recipe.stop_metric, model, trie, extension.token_ids, questions)


def _write_soft_users(model: Any, soft: TrainedUsers, folder: Path) -> None:
    """Write the projector with the users it knows; the checkpoint beside it is a plain one."""
    projector = detach_users(model)
    assert projector is not None, "add_projector has put it there"
    save_users(projector, soft.known, folder)


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
        out,
        step="train",
        recipe=recipe,
        inputs=inputs.by_role(),
        resumable=True,
        run=name_run(recipe),
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
        stats = [(file.name, file.stat()) for file in sorted(Path(source).glob("*.safetensors"))]
        values = {
            "base": str(Path(source).resolve()) if Path(source).exists() else source,
            # A base trained anew lies where the old one lay.
            "weights": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != values:
            _log.info("train: the unfinished run had another base model; starting clean")
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        write_json(path, values)
    state.wait_for_everyone()


def _describe(
    trained: TrainedModel,
    checkpoint: Checkpoint,
    inputs: _Inputs,
    recipe: TrainRecipe,
    rows: EncodedRows,
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
        "tasks": trained.tasks,
        f"best_{name_score(recipe)}": trained.best_score,
        "parameters": total,
        "trained_parameters": trainable,
        **_describe_inputs(inputs),
    }


def _choose_settings(
    checkpoint: Checkpoint, inputs: _Inputs, recipe: TrainRecipe, users: UserVocabulary | None
) -> dict[str, Any]:
    """What `genrec.json` says besides the catalogue."""
    is_frozen = recipe.token_rows == "frozen"
    padding = find_padding(recipe.align, checkpoint.tokenizer)
    return {
        "base": locate_base(checkpoint.source),
        # Such an adapter may be served over its base, beside others; over no other weights.
        "base_weights": digest_weights(checkpoint.source) if is_frozen else None,
        "method": recipe.method,
        "domain": recipe.domain,
        "chat": None if checkpoint.chat is None else checkpoint.chat.as_record(),
        "align": None if padding is None else padding.as_record(),
        "user_digest": None if users is None else users.digest,
        "data_digest": inputs.data.manifest.digest,
        "tokenizer_digest": inputs.tokenize.manifest.digest,
    }


def _describe_inputs(inputs: _Inputs) -> dict[str, Any]:
    """What the card tells of data and instructions, as far as their manifests say it."""
    data, prompts = inputs.data.manifest, inputs.prompts.manifest
    return {
        "data": {
            "source": data.recipe.get("source"),
            "users": data.facts.get("n_users"),
            "items": data.facts.get("n_items"),
            "interactions": data.facts.get("n_interactions"),
            "split": data.facts.get("split"),
        },
        "instructions": {
            "tasks": prompts.facts.get("tasks", {}).get("train"),
            "templates": len(prompts.facts.get("templates", {})) or None,
        },
    }

"""Supervised fine-tuning on prompt and target rows.

Owns one run: its settings, its start from a checkpoint, its end, and what is said when memory runs
out. Knows nothing of semantic IDs, adapters or the artefact that comes out.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerState, TrainingArguments

from genrec.progress import show_progress
from genrec.train.batches import Collator, count_cycles, list_passes
from genrec.train.checkpoint import quiet_transformers
from genrec.train.monitor import Monitor, check_trackers
from genrec.train.out_of_memory import advise_memory, explain_memory
from genrec.train.packing import pack_attention
from genrec.train.processes import copy_outline, fill_outline, is_sharded, load_weights
from genrec.train.recipe import TrainRecipe
from genrec.train.resume import STATE_FILE, check_processes, find_checkpoint, point_best
from genrec.train.rows import EncodedRows
from genrec.train.settings import CHECKPOINTS, LOG_FILE, build_settings, count_updates
from genrec.train.soft_users import TrainedUsers
from genrec.train.stopping import StopMetric, check_whole
from genrec.train.tally import sum_tasks
from genrec.train.trainer import CompletionTrainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training gives back; the model holds the best weights where there was validation.

    Attributes:
        best_eval_loss: the validation loss with these weights.
        best_score: what early stopping went by, with these weights.
        tasks: rows, target_tokens and tokens trained on of each task, its last training loss, and
            its validation loss with these weights.
    """

    model: Any
    updates: int
    tokens: int
    tokens_per_second: float
    best_eval_loss: float | None
    best_score: float | None
    tasks: dict[str, dict[str, float]]


def train_rows(
    model: Any,
    pad_token_id: int,
    rows: EncodedRows,
    valid_rows: EncodedRows | None,
    recipe: TrainRecipe,
    out: Path,
    stop_metric: StopMetric | None = None,
    users: TrainedUsers | None = None,
) -> TrainedModel:
    """Train `model` on rows, from the last complete checkpoint below `out` if there is one.

    Args:
        model: prepared for training.
        pad_token_id: fills rows of a batch to one length.
        rows: training rows.
        valid_rows: validation rows; None trains to the end without looking.
        recipe: all settings.
        out: gets `training.jsonl` and, while training, `checkpoints/`.
        stop_metric: measured at each validation, where the recipe stops by one.
        users: whom rows show as soft tokens, their projector in the model.

    Raises:
        ModelError: the loss is not finite, or memory runs out.
        RecipeError: report_to names a tracker that is unknown or not installed.
    """
    check_trackers(recipe.report_to)
    if recipe.eval_every == 0:
        valid_rows = None
    n_updates = count_updates(len(rows), recipe, cycles=count_cycles(rows, recipe.epochs))
    settings = build_settings(recipe, out / CHECKPOINTS, n_updates, valid_rows is not None)
    _take_one_device(settings)
    monitor = Monitor(recipe, out / LOG_FILE, n_updates, len(list_passes(rows)))
    collator = Collator(pad_token_id, token_users=users is not None)
    trainer = CompletionTrainer(
        recipe,
        model=model,
        args=settings,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=valid_rows,
        callbacks=[monitor],
        stop_metric=stop_metric,
        users=users,
    )
    if stop_metric is not None:
        check_whole(trainer.accelerator, recipe.stop_metric)
    trainer.remove_callback(PrinterCallback)
    checkpoint = _find_start(trainer, out / CHECKPOINTS)
    packing = pack_attention(model, rows) if recipe.packing else nullcontext(False)
    with (
        quiet_transformers(),
        packing as packed,
        show_progress("training", n_updates, unit="updates") as advance,
    ):
        trainer.data_collator = replace(collator, packed=packed)
        monitor.advance = advance
        is_done = trainer.state.global_step >= n_updates or monitor.has_stopped(trainer.state)
        whole = _finish(trainer, checkpoint, out, is_done=is_done)
    return TrainedModel(
        model=whole,
        updates=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        tokens_per_second=monitor.tokens_per_second(trainer.state),
        best_eval_loss=monitor.find_loss(trainer.state),
        best_score=trainer.state.best_metric,
        tasks=sum_tasks(trainer.state.log_history, trainer.state.best_global_step),
    )


def _find_start(trainer: CompletionTrainer, folder: Path) -> Path | None:
    """The checkpoint to go on from, its state in the trainer; None to start from the beginning."""
    checkpoint = find_checkpoint(folder, remove=trainer.is_world_process_zero())
    if checkpoint is None:
        return None
    check_processes(checkpoint, trainer.args.world_size, sharded=trainer.is_fsdp_enabled)
    _log.info("train: resuming from %s", checkpoint.name)
    if trainer.is_world_process_zero():
        point_best(checkpoint)
    trainer.accelerator.wait_for_everyone()
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    return checkpoint


def _finish(
    trainer: CompletionTrainer, checkpoint: Path | None, out: Path, *, is_done: bool
) -> Any:
    """The trained model as one, though processes may hold shares of it while they train."""
    model: Any = trainer.model
    if checkpoint is not None and is_done:
        # Killed between its last update and the export: one more update could only differ.
        load_weights(model, Path(trainer.state.best_model_checkpoint or checkpoint))
        return model
    outline = copy_outline(model) if is_sharded(trainer.accelerator) else None
    with explain_memory(lambda: _advise_memory(trainer, out)):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if outline is not None:
        return fill_outline(outline, trainer.accelerator, trainer.model_wrapped)
    return trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def _take_one_device(settings: TrainingArguments) -> None:
    """One GPU a process: the Trainer would cut every tensor of a batch in as many pieces."""
    if settings.n_gpu > 1:
        _log.info(
            "train: one of %d GPUs is used; start it under `accelerate launch` to use all",
            settings.n_gpu,
        )
        settings._n_gpu = 1


def _advise_memory(trainer: CompletionTrainer, out: Path) -> str:
    rows: Any = trainer.train_dataset
    checkpoint = find_checkpoint(out / CHECKPOINTS, remove=False)
    return advise_memory(
        trainer.recipe,
        trainer.state.global_step,
        int(rows.lengths.max()),
        None if checkpoint is None else str(checkpoint),
    )

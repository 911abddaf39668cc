"""Supervised fine-tuning on prompt and target rows.

Owns one run: its settings, its start from a checkpoint, its end, and what is said when memory runs
out. Knows nothing of semantic IDs, adapters or the artefact that comes out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState

from genrec.errors import ModelError
from genrec.progress import show_progress
from genrec.train.checkpoint import quiet_transformers
from genrec.train.loss import completion_loss
from genrec.train.monitor import Monitor, check_trackers
from genrec.train.recipe import TrainRecipe
from genrec.train.resume import STATE_FILE, find_checkpoint
from genrec.train.rows import EncodedRows, collate_rows
from genrec.train.settings import CHECKPOINTS, LOG_FILE, build_settings, count_updates
from genrec.train.trainer import CompletionTrainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training gives back; the model holds the best weights where there was validation."""

    model: Any
    updates: int
    tokens: int
    tokens_per_second: float
    best_eval_loss: float | None


def train_rows(
    model: Any,
    pad_token_id: int,
    rows: EncodedRows,
    valid_rows: EncodedRows | None,
    recipe: TrainRecipe,
    out: Path,
) -> TrainedModel:
    """Train `model` on rows, from the last complete checkpoint below `out` if there is one.

    Args:
        model: prepared for training.
        pad_token_id: fills rows of a batch to one length.
        rows: training rows.
        valid_rows: validation rows; None trains to the end without looking.
        recipe: all settings.
        out: gets `training.jsonl` and, while training, `checkpoints/`.

    Raises:
        ModelError: the loss is not finite, or memory runs out.
        RecipeError: report_to names a tracker that is unknown or not installed.
    """
    check_trackers(recipe.report_to)
    if valid_rows is None or recipe.eval_every == 0:
        valid_rows = None
    n_updates = count_updates(len(rows), recipe)
    settings = build_settings(recipe, out / CHECKPOINTS, n_updates, valid_rows is not None)
    monitor = Monitor(recipe, out / LOG_FILE, n_updates)
    trainer = CompletionTrainer(
        recipe,
        model=model,
        args=settings,
        data_collator=partial(collate_rows, pad_token_id=pad_token_id),
        train_dataset=rows,
        eval_dataset=valid_rows,
        compute_loss_func=partial(completion_loss, label_smoothing=recipe.label_smoothing),
        callbacks=[monitor],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = find_checkpoint(out / CHECKPOINTS, remove=trainer.is_world_process_zero())
    if checkpoint is not None:
        _log.info("train: resuming from %s", checkpoint.name)
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    with quiet_transformers(), show_progress("training", n_updates, unit="updates") as advance:
        monitor.advance = advance
        if monitor.has_stopped(trainer.state):
            # Killed between its last update and the export: one more update could only differ.
            trainer._load_best_model()
        else:
            _run(trainer, checkpoint, out)
    return TrainedModel(
        model=trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False),
        updates=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        tokens_per_second=monitor.tokens_per_second(trainer.state),
        best_eval_loss=trainer.state.best_metric,
    )


def _run(trainer: CompletionTrainer, checkpoint: Path | None, out: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise ModelError(_advise_memory(trainer, out)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ModelError(_advise_memory(trainer, out)) from error


def _advise_memory(trainer: CompletionTrainer, out: Path) -> str:
    recipe = trainer.recipe
    rows: Any = trainer.train_dataset
    half = max(recipe.batch_size // 2, 1)
    more = "" if recipe.gradient_checkpointing else ", set gradient_checkpointing: true"
    return (
        f"out of memory at update {trainer.state.global_step} with batch_size {recipe.batch_size} "
        f"and rows of up to {int(rows.lengths.max())} tokens; use batch_size: "
        f"{half} with gradient_accumulation: {recipe.gradient_accumulation * 2} (the same result)"
        f"{more}, lower max_tokens or eval_batch_size, or train on a larger device. Checkpoints "
        f"are kept in {out / CHECKPOINTS}: the same command goes on from the last one"
    )

"""Supervised fine-tuning on prompt and target rows.

Owns the training loop's settings, its loss, validation, checkpoints and resume. Knows nothing of
semantic IDs, adapters or the artefact that comes out.

It is transformers' Trainer, not TRL 1.16's SFTTrainer: that one replaces the model's forward by one
with a fused head, which computes entropy and accuracy at every step as well. Padding on the left
with `logits_to_keep` (see `rows.collate_rows`) runs the head over the targets alone, through the
model's own forward and Trainer's public `compute_loss_func`.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerState

from genrec.errors import ModelError
from genrec.progress import show_progress
from genrec.train.checkpoint import quiet_transformers
from genrec.train.monitor import Monitor, check_trackers
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import IGNORED_LABEL, EncodedRows, LengthGroups, collate_rows
from genrec.train.settings import CHECKPOINTS, LOG_FILE, build_settings, count_updates

STATE_FILE = "trainer_state.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training gives back; the model holds the best weights where there was validation."""

    model: Any
    updates: int
    tokens: int
    tokens_per_second: float
    best_eval_loss: float | None


def completion_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The mean cross-entropy over target tokens.

    Args:
        outputs: the model's, with the logits of the last C + 1 positions.
        labels: as `collate_rows` makes them.
        num_items_in_batch: target tokens of all accumulated batches and processes.
        label_smoothing: share of the target spread over the vocabulary.

    Shapes:
        outputs.logits: (U, C + 1, V); labels: (U, C + 1) int64.
    """
    targets = labels[:, 1:].flatten()
    total = cross_entropy(
        outputs.logits[:, :-1].float().flatten(0, 1),
        targets,
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if num_items_in_batch is None:
        return total / (targets != IGNORED_LABEL).sum()
    return total / num_items_in_batch


class CompletionTrainer(Trainer):
    """transformers' Trainer with seeded length groups and a validation loss per target token."""

    def __init__(self, recipe: TrainRecipe, **settings: Any) -> None:
        """Everything else is handed to Trainer."""
        self.recipe = recipe
        super().__init__(**settings)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroups:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        recipe = self.recipe
        return LengthGroups(
            rows.lengths, recipe.batch_size, recipe.seed, group=recipe.group_by_length
        )

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean loss over all target tokens of the validation rows, whatever the batches are."""
        del ignore_keys
        model: Any = self.model
        model.eval()
        loss, count = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            targets = inputs.pop("labels")[:, 1:]
            logits = model(**inputs).logits[:, :-1].float()
            losses = cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none"
            ).sum(1)
            counts = (targets != IGNORED_LABEL).sum(1)
            # A row each, so that the copies which even out the processes' last batch are dropped.
            losses, counts = self.accelerator.gather_for_metrics((losses, counts))
            loss += float(losses.sum())
            count += int(counts.sum())
        metrics = {f"{metric_key_prefix}_loss": loss / max(count, 1)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Zero: Trainer would walk all modules at every step for a figure nobody reads."""
        del inputs
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # PEFT would ask the hub whether the vocabulary grew, and then save both whole matrices;
        # the token rows are in the adapter already.
        model: Any = self.model
        if isinstance(model, PeftModel):
            model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
            return
        super()._save(output_dir, state_dict)


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


def find_checkpoint(folder: Path, *, remove: bool = True) -> Path | None:
    """The last complete checkpoint below `folder`; what a kill left half written is removed.

    Args:
        folder: the Trainer's output directory.
        remove: delete the incomplete ones (one process of several does it).
    """
    if not folder.is_dir():
        return None
    for path in folder.glob("checkpoint-*"):
        if remove and not _is_complete(path):
            _log.info("train: %s is half written and is removed", path.name)
            shutil.rmtree(path)
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(path: Path) -> bool:
    # Trainer writes its state last, but not atomically.
    try:
        json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True

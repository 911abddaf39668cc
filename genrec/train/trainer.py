"""transformers' Trainer for prompt and target rows.

Owns the order of the rows, the validation loss and what a checkpoint holds. Knows nothing of the
loop's settings, of semantic IDs or of the artefact that comes out.

It is transformers' Trainer, not TRL 1.16's SFTTrainer. That one packs for FlashAttention kernels
only, which neither a CPU nor every GPU has, and replaces the model's forward by one with a fused
head, which computes entropy and accuracy at every step as well. Here `packing.attend_rows` packs
with SDPA, and `logits_to_keep` (see `batches`) runs the head over the positions before targets
alone, through the model's own forward and Trainer's public `compute_loss_func`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer

from genrec.train.batches import ABOUT, LengthGroups
from genrec.train.loss import average_losses, sum_rows, target_losses
from genrec.train.optimizer import build_schedule, group_parameters
from genrec.train.processes import keep_embeddings_together, load_weights
from genrec.train.recipe import TrainRecipe
from genrec.train.resume import STATE_FILE, WRITING, drop_checkpoints, publish_checkpoint
from genrec.train.settings import name_score
from genrec.train.soft_users import TrainedUsers, load_projector, save_projector
from genrec.train.stopping import StopMetric
from genrec.train.tally import TaskTally, name_eval_losses


class CompletionTrainer(Trainer):
    """transformers' Trainer with seeded length groups and a validation loss per target token."""

    def __init__(
        self,
        recipe: TrainRecipe,
        *,
        stop_metric: StopMetric | None = None,
        users: TrainedUsers | None = None,
        **settings: Any,
    ) -> None:
        """Train by `recipe`, measuring `stop_metric` too; all else is handed to Trainer.

        Args:
            recipe: all values.
            stop_metric: measured at each validation.
            users: whom rows show as soft tokens; `batches.Collator` must tell whose tokens are.
            settings: the Trainer's.
        """
        self.recipe = recipe
        self.stop_metric = stop_metric
        self._users = users
        self._is_saving = False
        rows: Any = settings["train_dataset"]
        self._tally = TaskTally(rows.task_names)
        self._about: dict[str, torch.Tensor] = {}
        super().__init__(compute_loss_func=self._measure_loss, **settings)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroups:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        recipe = self.recipe
        # A group is an update's rows, so that an update sees the same ones in smaller batches, and
        # in the batches of several processes.
        n_rows = recipe.batch_size * recipe.gradient_accumulation * self.args.world_size
        return LengthGroups(rows, n_rows, recipe.seed, group=recipe.group_by_length)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As the Trainer's, of the batch without what is not for the model."""
        self._about = inputs.pop(ABOUT)
        with self._show_users(inputs["input_ids"], self._about):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _show_users(
        self, ids: torch.Tensor, about: dict[str, torch.Tensor]
    ) -> AbstractContextManager[None]:
        """A block in which the marks of a batch stand for the users of their rows."""
        if self._users is None:
            return nullcontext()
        model: Any = self.model
        shown = self._users.find_shown(ids, about["token_users"])
        block: AbstractContextManager[None] = model.soft_users.show(shown.to(ids.device))
        return block

    def _measure_loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        smoothing = self.recipe.label_smoothing
        losses = target_losses(outputs.logits, labels, label_smoothing=smoothing)
        self._tally.add(self._about["tasks"], sum_rows(losses, labels, self._about))
        return average_losses(losses, labels, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; a training loss brings those of the tasks since the last one."""
        if "loss" in logs or "train_loss" in logs:
            logs.update(self._tally.take(lambda sums: self.accelerator.reduce(sums, "sum")))
        super().log(logs, start_time)

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
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        names = rows.task_names
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs: dict[str, Any] = self._prepare_inputs(batch)
            labels, about = inputs.pop("labels"), inputs.pop(ABOUT)
            with self._show_users(inputs["input_ids"], about):
                logits = model(**inputs).logits
            losses = sum_rows(target_losses(logits, labels), labels, about)
            # A row each, so that the copies which even out the processes' last batch are dropped.
            tasks, losses = self.accelerator.gather_for_metrics((about["tasks"], losses))
            sums.index_add_(0, tasks.cpu(), losses[:, :2].cpu())
        means = sums[:, 0] / sums[:, 1].clamp(min=1)
        metrics = {f"{metric_key_prefix}_loss": float(sums[:, 0].sum() / sums[:, 1].sum())}
        metrics |= name_eval_losses(dict(zip(names, means.tolist(), strict=True)))
        if self.stop_metric is not None:
            metrics[name_score(self.recipe)] = self.stop_metric.measure(self.accelerator)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Zero: Trainer would walk all modules at every step for a figure nobody reads."""
        del inputs
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the groups of `group_parameters`."""
        if self.optimizer is None:
            module: Any = self.model if model is None else model
            kind, words = self.get_optimizer_cls_and_kwargs(self.args, module)
            decaying = set(self.get_decay_parameter_names(module))
            self.optimizer = kind(group_parameters(module, decaying, self.recipe), **words)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The rates of `build_schedule`."""
        if self.lr_scheduler is None:
            groups: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = build_schedule(groups, self.recipe, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, *arguments: Any) -> Any:
        model: Any = self.model
        prepare: Any = super()._prepare_for_training
        if not (self.is_fsdp_enabled and isinstance(model, PeftModel)):
            return prepare(*arguments)
        with keep_embeddings_together(model):
            return prepare(*arguments)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            sharded: Any = self.model if model is None else model
            load_weights(sharded, Path(resume_from_checkpoint))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projector(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            sharded: Any = self.model
            load_weights(sharded, Path(str(self.state.best_model_checkpoint)))
            return
        super()._load_best_model()
        load_projector(self.model, Path(str(self.state.best_model_checkpoint)))

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / WRITING) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint under another name, and rename it when every process is done."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        best_step = self.state.best_global_step
        if best_step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{best_step}")
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.state.save_to_json(str(folder / WRITING / f"checkpoint-{step}" / STATE_FILE))
            publish_checkpoint(folder, step)
            # There are never more checkpoints than updates, so that none means no limit.
            drop_checkpoints(folder, self.args.save_total_limit or step, best_step)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # PEFT would ask the hub whether the vocabulary grew, and then save both whole matrices;
        # the token rows are in the adapter already.
        model: Any = self.model
        if isinstance(model, PeftModel):
            model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
        else:
            super()._save(output_dir, state_dict)
        save_projector(model, Path(str(output_dir)))

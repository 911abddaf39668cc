"""transformers' Trainer for prompt and target rows.

Owns the order of the rows, the validation loss and what a checkpoint holds. Knows nothing of the
loop's settings, of semantic IDs or of the artefact that comes out.

It is transformers' Trainer, not TRL 1.16's SFTTrainer: that one replaces the model's forward by one
with a fused head, which computes entropy and accuracy at every step as well. Here `logits_to_keep`
(see `rows.collate_rows`) runs the head over the targets alone, through the model's own forward and
Trainer's public `compute_loss_func`.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import Trainer

from genrec.train.recipe import TrainRecipe
from genrec.train.rows import IGNORED_LABEL, LengthGroups


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

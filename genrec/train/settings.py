"""A train recipe in the words of transformers' Trainer.

Owns the mapping from recipe values to TrainingArguments, and how many updates they mean. Knows
nothing of models or rows.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from genrec.train.checkpoint import choose_dtype
from genrec.train.recipe import TrainRecipe

CHECKPOINTS = "checkpoints"
LOG_FILE = "training.jsonl"


def count_updates(
    n_rows: int,
    recipe: TrainRecipe,
    n_processes: int | None = None,
    *,
    cycles: float | None = None,
) -> int:
    """How many weight updates the recipe means for so many rows.

    Args:
        n_rows: of all passes together.
        recipe: batches, epochs or max_steps.
        n_processes: how many share the rows; None asks accelerate.
        cycles: how often all rows are gone over (`batches.count_cycles`); None, with rows of one
            pass only, is the recipe's epochs.
    """
    if recipe.max_steps is not None:
        return recipe.max_steps
    n_processes = n_processes or PartialState().num_processes
    batches = math.ceil(n_rows / (recipe.batch_size * n_processes))
    updates = math.ceil(batches / recipe.gradient_accumulation)
    # A share of whole batches may come out a rounding error above a whole number.
    return max(math.ceil(updates * (recipe.epochs if cycles is None else cycles) - 1e-6), 1)


def count_interval(every: float, n_updates: int) -> int:
    """An interval in updates, from updates or a share of all of them; at least 1."""
    # Rounded up, so that the last share ends with the run instead of one update before it.
    return max(int(every), 1) if every >= 1 else max(math.ceil(every * n_updates), 1)


def name_score(recipe: TrainRecipe) -> str:
    """What the Trainer calls the value that early stopping goes by."""
    return f"eval_{recipe.stop_metric}"


def build_settings(
    recipe: TrainRecipe, folder: Path, n_updates: int, validates: bool
) -> TrainingArguments:
    """The Trainer's settings for this recipe.

    Args:
        recipe: all values.
        folder: where checkpoints go.
        n_updates: how many updates there will be.
        validates: whether there are validation rows to look at.
    """
    has_gpu = torch.cuda.is_available()
    interval = count_interval(recipe.eval_every, n_updates)
    return TrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        max_steps=n_updates,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=round(recipe.warmup * n_updates),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.gradient_clip,
        bf16=choose_dtype(recipe.precision) == torch.bfloat16,
        fp16=choose_dtype(recipe.precision) == torch.float16,
        use_cpu=not has_gpu,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="steps" if validates else "no",
        eval_steps=interval,
        save_strategy="steps" if validates or recipe.save_every else "no",
        save_steps=interval if validates else count_interval(recipe.save_every, n_updates),
        save_total_limit=2,
        load_best_model_at_end=validates,
        metric_for_best_model=name_score(recipe) if validates else None,
        greater_is_better=recipe.stop_metric != "loss" if validates else None,
        report_to=list(recipe.report_to) or "none",
        run_name=folder.parent.name,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
        ddp_find_unused_parameters=False,
    )

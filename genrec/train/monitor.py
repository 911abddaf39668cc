"""Watching a training run.

Owns progress, the log file, and every reason to stop early: no better validation, time spent, a
loss that is not finite. Keeps no state of its own that a resumed run would miss: all is read from
the Trainer's history.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from genrec.errors import ModelError, RecipeError
from genrec.manifest import read_json, write_json
from genrec.recipe import suggest_name
from genrec.train.checkpoint import choose_dtype
from genrec.train.recipe import TrainRecipe
from genrec.train.settings import count_interval, name_score
from genrec.train.tally import group_figures

_CLOCK_FILE = "clock.json"
_LOG_KEYS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
_log = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless the Trainer can report to all of these.

    Raises:
        RecipeError: a name is unknown, or its package is not installed.
    """
    available = integration_utils.get_available_reporting_integrations()
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise RecipeError(f"report_to {name!r} is no tracker; {suggest_name(name, known)}")
        if name not in available:
            raise RecipeError(
                f"report_to {name!r} needs a package that is not installed; install {name}, or "
                f"leave it out: training.jsonl is always written"
            )


class Monitor(TrainerCallback):
    """Shows, logs and stops a run; one for each run."""

    def __init__(
        self, recipe: TrainRecipe, log_file: Path, n_updates: int, n_passes: int = 1
    ) -> None:
        """Watch a run of `n_updates` updates over rows of so many passes; its log is `log_file`."""
        self.advance: Callable[..., None] = lambda *_args, **_words: None
        self._recipe = recipe
        self._n_passes = n_passes
        self._score = name_score(recipe)
        self._log_file = log_file
        self._save_interval = (
            count_interval(recipe.save_every, n_updates) if recipe.save_every else None
        )
        self._started = time.monotonic()
        self._first_tokens = 0
        self._earlier_seconds = 0.0
        self._written = 0
        self._note = ""

    def tokens_per_second(self, state: TrainerState) -> float:
        """Unpadded tokens a second of this run, validation and checkpoints included."""
        seconds = time.monotonic() - self._started
        return float((state.num_input_tokens_seen - self._first_tokens) / max(seconds, 1e-9))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock, and take up the log where a resumed run's checkpoint stands."""
        self._started = time.monotonic()
        self._first_tokens = state.num_input_tokens_seen
        self._earlier_seconds = _read_clock(args) if state.global_step else 0.0
        self.advance(state.global_step)
        if state.is_world_process_zero:
            lines = _read_lines(self._log_file, state.global_step)
            self._log_file.write_text("".join(lines), encoding="utf-8")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the update; save between validations; stop when time or patience is up."""
        self.advance(1, note=self._note)
        if self._save_interval and state.global_step % self._save_interval == 0:
            control.should_save = True
        limit = self._recipe.max_minutes
        if limit is not None and self._seconds() > limit * 60:
            _log.info("train: max_minutes %g is up at update %d", limit, state.global_step)
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        if control.should_save or control.should_evaluate:
            control.should_log = True  # so that a broken loss is seen before it is saved

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write a line, warn of updates that overflow, and raise if the loss is not finite."""
        values = {"step": state.global_step, **(logs or {})}
        if "loss" not in values and "eval_loss" not in values:
            return
        loss = values.get("loss", values.get("eval_loss", 0.0))
        if not math.isfinite(loss):
            raise ModelError(self._explain_loss(loss, state.global_step))
        if self._recipe.precision == "fp16" and not math.isfinite(values.get("grad_norm", 0.0)):
            # The loss scaler leaves such an update out and halves its scale. A few are its way of
            # finding the scale; NaN is no number that JSON has.
            _log.warning(
                "train: gradients overflowed fp16 at update %d, which is left out; if this goes "
                "on, use %s",
                state.global_step,
                self._advise_precision(),
            )
            del values["grad_norm"]
        self._note = f"loss {loss:.4f}" if "loss" in values else self._note
        if state.is_world_process_zero:
            self._write_line(values, state)

    def _write_line(self, values: dict[str, float], state: TrainerState) -> None:
        known = dict.fromkeys((*_LOG_KEYS, self._score))
        line: dict[str, Any] = {key: values[key] for key in known if key in values}
        # The Trainer's epoch goes over the rows of all passes.
        line["epoch"] = values["epoch"] * self._n_passes
        line["tokens"] = int(state.num_input_tokens_seen)
        line |= {"tasks": tasks} if (tasks := group_figures(values)) else {}
        with self._log_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say how validation went, and stop once it was no better for `patience` times."""
        losses = _list_scores(state, "eval_loss")
        _log.info("train: update %d, validation loss %.4f", state.global_step, losses[-1])
        if self.has_stopped(state):
            scores = _list_scores(state, self._score)
            _log.info(
                "train: no better validation %s for %d times; stopping, the best was %.4f",
                self._recipe.stop_metric,
                self._recipe.patience,
                scores[self._find_best(scores)],
            )
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note the time spent beside the checkpoint, for max_minutes after a resume."""
        if state.is_world_process_zero:
            write_json(Path(str(args.output_dir)) / _CLOCK_FILE, {"seconds": self._seconds()})

    def has_stopped(self, state: TrainerState) -> bool:
        """Whether the last `patience` validations were no better than one before.

        Of equal scores the one with the lower loss is better: on a large catalogue nobody's answer
        is right at first, and a model that learns must not be stopped for that.
        """
        scores = _list_scores(state, self._score)
        if not scores or not self._recipe.patience:
            return False
        sign = -1.0 if self._recipe.stop_metric == "loss" else 1.0
        losses = _list_scores(state, "eval_loss")
        ranks = [(sign * score, -loss) for score, loss in zip(scores, losses, strict=True)]
        return len(ranks) - 1 - ranks.index(max(ranks)) >= self._recipe.patience

    def find_loss(self, state: TrainerState) -> float | None:
        """The validation loss of the best weights; None without validation."""
        scores = _list_scores(state, self._score)
        return _list_scores(state, "eval_loss")[self._find_best(scores)] if scores else None

    def _find_best(self, scores: list[float]) -> int:
        """The first of the best, which is the one that the Trainer keeps."""
        return scores.index(min(scores) if self._recipe.stop_metric == "loss" else max(scores))

    def _explain_loss(self, loss: float, update: int) -> str:
        recipe = self._recipe
        ways = [f"lower learning_rate (now {recipe.learning_rate:g}) or raise warmup"]
        if recipe.gradient_clip != 1.0:
            ways.append(f"set gradient_clip: 1.0 (now {recipe.gradient_clip:g})")
        is_half = recipe.precision in ("fp16", "bf16")
        if is_half or choose_dtype(recipe.precision) != torch.float32:
            ways.append(f"use {self._advise_precision()} if it happens again")
        return (
            f"the loss is {loss} at update {update}; {', '.join(ways)}. The last checkpoint, if "
            f"there is one, is from before it"
        )

    def _advise_precision(self) -> str:
        if self._recipe.precision == "fp16":
            return "precision: bf16 (its range is that of fp32) or fp32"
        return "precision: fp32"

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started


def _list_scores(state: TrainerState, name: str) -> list[float]:
    return [entry[name] for entry in state.log_history if name in entry]


def _read_lines(path: Path, last_step: int) -> list[str]:
    """The complete lines of a log up to a step; what was logged after the checkpoint goes."""
    if not path.is_file() or last_step == 0:
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except json.JSONDecodeError:  # a kill in the middle of a line
            break
        if step <= last_step:
            kept.append(line)
    return kept


def _read_clock(args: TrainingArguments) -> float:
    path = Path(str(args.output_dir)) / _CLOCK_FILE
    return float(read_json(path).get("seconds", 0.0)) if path.is_file() else 0.0

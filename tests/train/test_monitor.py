"""Reasons to stop, what the log holds, and what is said of numbers that are not finite."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from genrec.errors import ModelError, RecipeError
from genrec.train.monitor import Monitor, check_trackers
from genrec.train.recipe import TrainRecipe


def make_monitor(recipe: TrainRecipe, folder: Path) -> Monitor:
    return Monitor(recipe, folder / "training.jsonl", n_updates=10)


def make_arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")


def log_values(monitor: Monitor, folder: Path, **values: float) -> None:
    state = TrainerState(global_step=3, num_input_tokens_seen=70)
    logs = values | {"epoch": 0.5}
    monitor.on_log(make_arguments(folder), state, TrainerControl(), logs=logs)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_a_line_holds_the_stopping_metric(recipe: TrainRecipe, tmp_path: Path) -> None:
    monitor = make_monitor(recipe.model_copy(update={"stop_metric": "HR@10"}), tmp_path)
    log_values(monitor, tmp_path, eval_loss=2.0, **{"eval_HR@10": 0.25})
    log_values(monitor, tmp_path, train_runtime=1.0)  # the Trainer's last words are no line
    line = {"step": 3, "eval_loss": 2.0, "eval_HR@10": 0.25, "tokens": 70}
    assert line.items() <= read_lines(tmp_path)[0].items()
    assert len(read_lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("precision", "advice"),
    [("fp16", r"use precision: bf16 \(its range"), ("bf16", "use precision: fp32 if")],
)
@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_a_loss_that_is_not_finite_names_another_precision(
    precision: str, advice: str, name: str, recipe: TrainRecipe, tmp_path: Path
) -> None:
    monitor = make_monitor(recipe.model_copy(update={"precision": precision}), tmp_path)
    with pytest.raises(ModelError, match=rf"the loss is inf at update 3; .*{advice}"):
        log_values(monitor, tmp_path, **{name: float("inf")})


def test_a_loss_that_is_not_finite_names_no_value_that_is_set_already(
    recipe: TrainRecipe, tmp_path: Path
) -> None:
    monitor = make_monitor(recipe.model_copy(update={"precision": "fp32"}), tmp_path)
    with pytest.raises(ModelError, match=r"the loss is nan") as caught:
        log_values(monitor, tmp_path, loss=float("nan"))
    assert "fp32" not in str(caught.value) and "gradient_clip" not in str(caught.value)
    monitor = make_monitor(recipe.model_copy(update={"gradient_clip": 0.0}), tmp_path)
    with pytest.raises(ModelError, match=r"set gradient_clip: 1.0 \(now 0\)"):
        log_values(monitor, tmp_path, loss=float("nan"))


def test_updates_that_overflow_fp16_are_said_and_no_json_is_broken(
    recipe: TrainRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make_monitor(recipe.model_copy(update={"precision": "fp16"}), tmp_path)
    with caplog.at_level(logging.WARNING):
        log_values(monitor, tmp_path, loss=2.0, grad_norm=float("nan"))
        log_values(monitor, tmp_path, loss=2.0, grad_norm=1.0)
    assert caplog.text.count("gradients overflowed fp16 at update 3, which is left out") == 1
    assert "bf16" in caplog.text
    assert ["grad_norm" in line for line in read_lines(tmp_path)] == [False, True]


def test_validation_is_told_and_patience_ends_it(
    recipe: TrainRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make_monitor(recipe.model_copy(update={"patience": 1}), tmp_path)
    control = TrainerControl()
    state = TrainerState(log_history=[{"eval_loss": 2.0}])
    with caplog.at_level(logging.INFO):
        monitor.on_evaluate(make_arguments(tmp_path), state, control)
        assert not control.should_training_stop
        state.log_history.append({"eval_loss": 2.5})
        monitor.on_evaluate(make_arguments(tmp_path), state, control)
    assert control.should_training_stop
    assert "no better validation loss for 1 times; stopping, the best was 2.0000" in caplog.text


def test_trackers_that_are_unknown_or_missing() -> None:
    check_trackers([])
    with pytest.raises(RecipeError, match="'wandbb' is no tracker; did you mean 'wandb'"):
        check_trackers(["wandbb"])

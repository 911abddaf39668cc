"""The loss, the training loop, its checkpoints and its reasons to stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrec.errors import ModelError, RecipeError
from genrec.train.adapter import count_parameters, merge_adapter
from genrec.train.batches import ABOUT, collate_rows
from genrec.train.loss import completion_loss
from genrec.train.recipe import TrainRecipe
from genrec.train.resume import find_checkpoint
from genrec.train.rows import EncodedRows
from genrec.train.settings import count_interval, count_updates
from genrec.train.sft import TrainedModel, train_rows
from genrec.train.trainer import CompletionTrainer
from tests.train.made_inputs import Inputs
from tests.train.made_runs import begin

Start = Callable[..., tuple[Any, EncodedRows, EncodedRows, int, list[int]]]


@pytest.fixture
def start(bases: Callable[[str], Path], inputs: Inputs) -> Start:
    """A model ready to train, its rows, its pad token and its SID token ids."""

    def prepare(recipe: TrainRecipe, kind: str = "qwen3") -> Any:
        made = begin(recipe, bases(kind), inputs)
        return made.model, made.rows, made.valid_rows, made.pad_token_id, made.new_ids

    return prepare


def run(start: Start, recipe: TrainRecipe, out: Path, *, valid: bool = True) -> TrainedModel:
    model, rows, valid_rows, pad, _ = start(recipe)
    out.mkdir(exist_ok=True)
    return train_rows(model, pad, rows, valid_rows if valid else None, recipe, out)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_loss_and_gradients_equal_the_plain_ones(
    kind: str, start: Start, recipe: TrainRecipe
) -> None:
    model, rows, _, pad, _ = start(recipe.model_copy(update={"method": "full"}), kind)
    model.eval()
    batch = collate_rows([rows[row] for row in range(7)], pad)
    labels, _ = batch.pop("labels"), batch.pop(ABOUT)
    loss = completion_loss(model(**batch), labels)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    # The plain way: one row at a time, no padding, logits everywhere.
    total, count = torch.zeros(()), 0
    for row in range(7):
        ids = torch.from_numpy(rows[row].input_ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0]
        first = rows[row].n_prompt
        total = total + torch.nn.functional.cross_entropy(
            logits[first - 1 : -1], ids[0, first:], reduction="sum"
        )
        count += ids.shape[1] - first
    (total / count).backward()
    plain = float(total.detach()) / count
    assert float(loss.detach()) == pytest.approx(plain, abs=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name
    with torch.no_grad():
        outputs = model(**batch)
        halved = float(completion_loss(outputs, labels, count * 2))
        smoothed = float(completion_loss(outputs, labels, label_smoothing=0.1))
    assert halved == pytest.approx(plain / 2, rel=1e-4)
    assert smoothed != pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_lora_trains_new_rows_and_leaves_old_ones(
    kind: str, start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"max_steps": 3})
    model, rows, valid_rows, pad, new_ids = start(recipe, kind)
    matrices = (model.get_input_embeddings(), model.get_output_embeddings())
    before = [module.token_adapter.get_base_layer().weight.clone() for module in matrices]
    trained = train_rows(model, pad, rows, valid_rows, recipe, tmp_path)
    total, trainable = count_parameters(trained.model)
    assert trainable < total / 3
    merged = merge_adapter(trained.model)
    after = (merged.get_input_embeddings().weight, merged.get_output_embeddings().weight)
    assert (after[0] is after[1]) == (kind != "llama")
    old = np.setdiff1d(np.arange(before[0].shape[0]), new_ids)
    for first, last in zip(before, after, strict=True):
        assert torch.equal(first[old], last[old])
        # Input rows of codes that no row of data holds get no gradient, and do not decay either.
        moved = (first[new_ids] - last[new_ids]).abs().sum(1) > 0
        assert int(moved.sum()) > len(new_ids) // 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_falls_on_rows_that_can_be_learnt(
    method: str, start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(
        update={"method": method, "max_steps": 40, "eval_every": 0.0, "learning_rate": 0.03}
    )
    trained = run(start, recipe, tmp_path, valid=False)
    log = read_log(tmp_path)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert trained.updates == log[-1]["step"] == 40
    assert trained.tokens == log[-1]["tokens"] > 0
    assert trained.tokens_per_second > 0
    assert trained.best_eval_loss is None
    assert not any("eval_loss" in line for line in log)


def test_validation_loss_is_the_mean_over_target_tokens(
    start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"max_steps": 1, "eval_batch_size": 5, "eval_every": 1.0})
    model, rows, valid_rows, pad, _ = start(recipe)
    trained = train_rows(model, pad, rows, valid_rows, recipe, tmp_path)
    batch = collate_rows([valid_rows[row] for row in range(len(valid_rows))], pad)
    labels, _ = batch.pop("labels"), batch.pop(ABOUT)
    with torch.no_grad():
        expected = float(completion_loss(trained.model.eval()(**batch), labels))
    assert trained.best_eval_loss == pytest.approx(expected, abs=1e-5)


def test_same_seed_same_weights(start: Start, recipe: TrainRecipe, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"dropout": 0.1, "max_steps": 2, "eval_every": 0.0})
    first = weights(run(start, recipe, tmp_path / "a").model)
    second = weights(run(start, recipe, tmp_path / "b").model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(run(start, recipe.model_copy(update={"seed": 1}), tmp_path / "c").model)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_run_resumes_to_the_same_weights(
    method: str,
    start: Start,
    recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Eleven updates over epochs of six, so that the kill at seven falls inside the second one.
    changes = {"method": method, "dropout": 0.1, "max_steps": 11, "save_every": 5.0}
    recipe = recipe.model_copy(update=changes)
    whole = run(start, recipe, tmp_path / "whole")

    step = CompletionTrainer.training_step

    def kill(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionTrainer, "training_step", kill)
        with pytest.raises(KeyboardInterrupt):
            run(start, recipe, tmp_path / "killed")
    torn = tmp_path / "killed" / "checkpoints" / "checkpoint-6"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": ')
    with caplog.at_level(logging.INFO):
        resumed = run(start, recipe, tmp_path / "killed")
    assert "checkpoint-6 is half written and is removed" in caplog.text
    assert "resuming from checkpoint-5" in caplog.text
    assert resumed.updates == whole.updates == 11
    assert resumed.tokens == whole.tokens
    expected = weights(whole.model)
    assert all(torch.equal(expected[name], value) for name, value in weights(resumed.model).items())
    logs = [read_log(tmp_path / name) for name in ("whole", "killed")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    assert logs[0][-1] == logs[1][-1]


def test_patience_stops_and_the_best_weights_come_back(
    start: Start, recipe: TrainRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The validation rows cannot be learnt from these: the loss on them falls, then rises.
    changes = {"patience": 2, "eval_every": 1.0, "max_steps": 100, "learning_rate": 0.1}
    recipe = recipe.model_copy(update=changes)
    with caplog.at_level(logging.INFO):
        trained = run(start, recipe, tmp_path)
    losses = [line["eval_loss"] for line in read_log(tmp_path) if "eval_loss" in line]
    assert trained.updates < 100
    assert "no better validation loss for 2 times; stopping" in caplog.text
    assert losses.index(min(losses)) == len(losses) - 3
    assert trained.best_eval_loss == min(losses)
    _, _, valid_rows, pad, _ = start(recipe)
    batch = collate_rows([valid_rows[row] for row in range(len(valid_rows))], pad)
    labels, _ = batch.pop("labels"), batch.pop(ABOUT)
    with torch.no_grad():
        found = float(completion_loss(trained.model.eval()(**batch), labels))
    assert found == pytest.approx(min(losses), abs=1e-4)
    # Killed after it had stopped, before the export: it stops again, with the same weights.
    again = run(start, recipe, tmp_path)
    assert (again.updates, again.tokens) == (trained.updates, trained.tokens)
    assert again.best_eval_loss == trained.best_eval_loss
    expected = weights(trained.model)
    assert all(torch.equal(expected[name], value) for name, value in weights(again.model).items())


def test_time_limit_stops_with_a_validation(
    start: Start, recipe: TrainRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe.model_copy(update={"max_minutes": 1e-9, "epochs": 50.0})
    with caplog.at_level(logging.INFO):
        trained = run(start, recipe, tmp_path)
    assert trained.updates == 1
    assert trained.best_eval_loss is not None
    assert "max_minutes 1e-09 is up at update 1" in caplog.text


def test_loss_that_is_not_finite_stops_with_advice(
    start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    model, rows, valid_rows, pad, _ = start(recipe)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the loss is nan at update 1; lower learning_rate"):
        train_rows(model, pad, rows, valid_rows, recipe, tmp_path)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 TB")],
)
def test_out_of_memory_keeps_checkpoints_and_advises(
    error: RuntimeError,
    start: Start,
    recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = CompletionTrainer.training_step

    def fail(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise error
        return step(self, *arguments, **words)

    monkeypatch.setattr(CompletionTrainer, "training_step", fail)
    with pytest.raises(
        ModelError,
        match=r"out of memory at update 5 .*batch_size: 4 with gradient_accumulation: 2",
    ):
        run(start, recipe, tmp_path)
    found = find_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.name == "checkpoint-4"


def test_other_runtime_errors_are_not_taken_for_memory(
    start: Start, recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any, **_words: Any) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(CompletionTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(start, recipe, tmp_path)


def test_bf16_checkpointing_accumulation_and_smoothing_run(
    start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    changes = {
        "precision": "bf16",
        "gradient_checkpointing": True,
        "gradient_accumulation": 2,
        "label_smoothing": 0.1,
        "max_steps": 2,
    }
    trained = run(start, recipe.model_copy(update=changes), tmp_path)
    assert trained.updates == 2
    assert np.isfinite(read_log(tmp_path)[-2]["loss"])


def test_target_modules_that_fit_nothing_are_refused(start: Start, recipe: TrainRecipe) -> None:
    with pytest.raises(RecipeError, match=r"'q_porj'.*does not fit.*down_proj, gate_proj"):
        start(recipe.model_copy(update={"target_modules": "q_porj"}))
    start(recipe.model_copy(update={"target_modules": ("q_proj", "v_proj")}))


def test_trackers_are_checked_before_training(
    start: Start, recipe: TrainRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="did you mean 'tensorboard'"):
        run(start, recipe.model_copy(update={"report_to": ("tensorbord",)}), tmp_path)
    with pytest.raises(RecipeError, match="'comet_ml' needs a package that is not installed"):
        run(start, recipe.model_copy(update={"report_to": ("comet_ml",)}), tmp_path)


def test_counting_of_updates_and_intervals() -> None:
    recipe = TrainRecipe(batch_size=8, epochs=2.5, gradient_accumulation=2)
    assert count_updates(100, recipe, 1) == 18  # 13 batches, 7 updates an epoch
    assert count_updates(100, recipe, 2) == 10
    assert count_updates(100, recipe.model_copy(update={"max_steps": 4}), 1) == 4
    assert [count_interval(every, 50) for every in (0.1, 0.001, 1, 20)] == [5, 1, 1, 20]
    assert find_checkpoint(Path("nowhere")) is None

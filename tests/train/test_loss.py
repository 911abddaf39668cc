"""The loss per target, per row and per task, and what the log says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from genrec.train.batches import ABOUT, Collator
from genrec.train.loss import completion_loss, sum_rows, target_losses
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRow, EncodedRows, pack_rows
from genrec.train.sft import TrainedModel, train_rows
from genrec.train.tally import TaskTally, group_figures, name_eval_losses, sum_tasks
from genrec.train.trainer import CompletionTrainer
from tests.train.made_inputs import build_tiny

V = 40


def make_rows(n_rows: int, seed: int = 0) -> EncodedRows:
    """Rows of three tasks, of two lengths of target."""
    random = np.random.default_rng(seed)
    rows = [
        EncodedRow(
            random.integers(3, V, random.integers(4, 12)).astype(np.int32), 2 + row % 2, row % 3
        )
        for row in range(n_rows)
    ]
    return pack_rows(rows, task_names=("a", "b", "c"))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_those_of_each_row(packed: bool, smoothing: float) -> None:
    rows = make_rows(7)
    batch = Collator(0, packed=packed)([rows[row] for row in range(7)])
    # A "model" whose logits depend on the token alone.
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    logits = table[batch["input_ids"]][:, batch["logits_to_keep"]]
    losses = target_losses(logits, batch["labels"], label_smoothing=smoothing)
    sums = sum_rows(losses, batch["labels"], batch[ABOUT])
    for row, (loss, targets, tokens) in enumerate(sums.tolist()):
        ids = torch.from_numpy(rows[row].input_ids.astype(np.int64))
        first = rows[row].n_prompt
        expected = cross_entropy(
            table[ids[first - 1 : -1]], ids[first:], reduction="sum", label_smoothing=smoothing
        )
        assert loss == pytest.approx(float(expected), rel=1e-5)
        assert (targets, tokens) == (len(ids) - first, len(ids))
    outputs = SimpleNamespace(logits=logits)
    mean = completion_loss(outputs, batch["labels"], label_smoothing=smoothing)
    assert float(mean) == pytest.approx(float(sums[:, 0].sum() / sums[:, 1].sum()), rel=1e-5)
    total = completion_loss(outputs, batch["labels"], 1, label_smoothing=smoothing)
    assert float(total) == pytest.approx(float(sums[:, 0].sum()), rel=1e-5)


def test_a_tally_is_by_task_and_starts_anew() -> None:
    tally = TaskTally(("x", "y/z", "unseen"))
    assert tally.take(lambda sums: sums) == {}
    tally.add(torch.tensor([0, 1]), torch.tensor([[6.0, 3.0, 9.0], [1.0, 2.0, 5.0]]).double())
    tally.add(torch.tensor([0]), torch.tensor([[2.0, 1.0, 4.0]]).double())
    taken = tally.take(lambda sums: sums * 2)  # as if two processes had the same
    assert group_figures({"loss": 1.0, **taken}) == {
        "x": {"loss": 2.0, "rows": 4, "target_tokens": 8, "tokens": 26},
        "y/z": {"loss": 0.5, "rows": 2, "target_tokens": 4, "tokens": 10},
    }
    assert tally.take(lambda sums: sums) == {}


def test_a_run_is_summed_from_its_log() -> None:
    def entry(step: int, rows: int, loss: float) -> dict[str, Any]:
        figures = {"rows": rows, "target_tokens": rows * 2, "tokens": rows * 9, "loss": loss}
        return {"step": step, **{f"tasks/x/{name}": value for name, value in figures.items()}}

    history = [
        entry(1, 3, 2.0),
        {"step": 1, **name_eval_losses({"x": 4.0, "y": 5.0})},
        entry(2, 4, 1.0),
        {"step": 2, **name_eval_losses({"x": 3.0})},
    ]
    found = sum_tasks(history, 1)
    assert found["x"] == {
        "rows": 7, "target_tokens": 14, "tokens": 63, "loss": 1.0, "eval_loss": 4.0,
    }  # fmt: skip
    assert found["y"]["eval_loss"] == 5.0
    assert sum_tasks(history, None)["x"]["eval_loss"] == 3.0


class Words:
    """As much of a tokenizer as a model is built from."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return V


def train_tiny(
    recipe: TrainRecipe, out: Path, rows: EncodedRows | None = None
) -> tuple[TrainedModel, list[Any]]:
    """Train a tiny decoder on made-up rows; gives the result and the log."""
    out.mkdir(exist_ok=True)
    model = build_tiny("qwen3", Words())
    trained = train_rows(model, 0, rows or make_rows(20), make_rows(9, seed=1), recipe, out)
    lines = (out / "training.jsonl").read_text().splitlines()
    return trained, [json.loads(line) for line in lines]


@pytest.fixture
def run(recipe: TrainRecipe, tmp_path: Path) -> Callable[..., tuple[TrainedModel, list[Any]]]:
    def train(**changes: Any) -> tuple[TrainedModel, list[Any]]:
        return train_tiny(recipe.model_copy(update={"method": "full", **changes}), tmp_path)

    return train


@pytest.mark.parametrize("packing", [True, False])
def test_the_log_tells_the_tasks_apart(run: Any, packing: bool) -> None:
    changes = {"batch_size": 4, "gradient_accumulation": 2, "max_steps": 6, "label_smoothing": 0.1}
    trained, lines = run(packing=packing, eval_every=3.0, log_every=2, **changes)
    training = [line for line in lines if "loss" in line]
    # 20 rows are 5 batches of 4, and so 3 updates an epoch.
    assert sum(task["rows"] for line in training for task in line["tasks"].values()) == 40
    tokens = sum(task["tokens"] for line in training for task in line["tasks"].values())
    assert tokens == training[-1]["tokens"] == trained.tokens
    for line in training:
        tasks = line["tasks"].values()
        assert all(set(task) == {"rows", "target_tokens", "tokens", "loss"} for task in tasks)
    # One update before the first line: its loss is the tasks' mean over target tokens.
    tasks = training[0]["tasks"].values()
    total = sum(task["loss"] * task["target_tokens"] for task in tasks)
    mean = total / sum(task["target_tokens"] for task in tasks)
    assert training[0]["loss"] == pytest.approx(mean, rel=1e-4)
    validation = [line for line in lines if "eval_loss" in line]
    assert all(set(line["tasks"]) == {"a", "b", "c"} for line in validation)
    assert {name: task["rows"] for name, task in trained.tasks.items()} == {
        "a": 14, "b": 14, "c": 12,
    }  # fmt: skip
    best = min(validation, key=lambda line: line["eval_loss"])
    assert {name: {"eval_loss": task["eval_loss"]} for name, task in trained.tasks.items()} == best[
        "tasks"
    ]


def test_the_last_updates_are_counted_without_a_line(run: Any) -> None:
    trained, lines = run(batch_size=10, max_steps=5, eval_every=0.0, log_every=4)
    assert lines[-1]["step"] == 4
    assert sum(task["rows"] for task in trained.tasks.values()) == 50


def test_passes_of_unlike_size_resume_exactly(
    recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_rows(26)
    passes = [0] * 10 + [1] * 16
    rows = pack_rows([made[row] for row in range(26)], passes=passes, task_names=made.task_names)
    # Three epochs: the first pass, the second, the first again; 36 rows in batches of 4.
    changes = {"method": "full", "batch_size": 4, "epochs": 3.0, "eval_every": 0.0, "save_every": 2}
    recipe = recipe.model_copy(update=changes)
    whole, lines = train_tiny(recipe, tmp_path / "whole", rows)
    assert whole.updates == 10  # 7 for both passes, and 10/26 of 7
    assert lines[-1]["epoch"] == pytest.approx(2 + 3 / 7 * 2)
    step = CompletionTrainer.training_step

    def kill(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 9:
            raise KeyboardInterrupt
        return step(self, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionTrainer, "training_step", kill)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(recipe, tmp_path / "killed", rows)
    resumed, _ = train_tiny(recipe, tmp_path / "killed", rows)
    assert resumed.tasks == whole.tasks
    expected = dict(whole.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(expected[name], weight), name


@pytest.mark.slow
def test_two_processes_learn_and_count_what_one_does(recipe: TrainRecipe, tmp_path: Path) -> None:
    changes = {"method": "full", "max_steps": 4, "eval_every": 2.0, "gradient_accumulation": 2}
    recipe = recipe.model_copy(update={**changes, "group_by_length": False, "batch_size": 4})
    one, lines = train_tiny(recipe, tmp_path / "one")
    script = tmp_path / "launch.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from genrec.train.recipe import TrainRecipe\n"
        "from tests.train.test_loss import train_tiny\n"
        "recipe = TrainRecipe.model_validate_json(sys.argv[1])\n"
        "trained, _ = train_tiny(recipe, Path(sys.argv[2]))\n"
        "trained.model.save_pretrained(sys.argv[2] + '/model')\n"
    )
    halved = recipe.model_copy(update={"batch_size": 2})
    # `accelerate launch --cpu --num_processes=2` starts one process; torch's own launcher two.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launcher, str(script), halved.model_dump_json(), str(tmp_path / "two")],
        check=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "ACCELERATE_USE_CPU": "true"},
        timeout=240,
    )
    others = [
        json.loads(line) for line in (tmp_path / "two" / "training.jsonl").read_text().splitlines()
    ]
    for first, second in zip(lines, others, strict=True):
        assert first["tasks"].keys() == second["tasks"].keys()
        for task, figures in first["tasks"].items():
            assert second["tasks"][task] == pytest.approx(figures, rel=1e-4)
        assert second["tokens"] == first["tokens"]
    weights = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, weight in one.model.named_parameters():
        torch.testing.assert_close(weights[name], weight.detach(), atol=1e-4, rtol=0)

"""Which weights learn when, and how fast."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, get_scheduler

from genrec.train import sft
from genrec.train.adapter import ROW_PARAMETER
from genrec.train.optimizer import build_schedule, count_alone, group_parameters
from genrec.train.recipe import TrainRecipe
from genrec.train.sft import train_rows
from genrec.train.trainer import CompletionTrainer
from tests.train.made_inputs import Inputs
from tests.train.made_runs import begin, weights

Rates = list[list[float]]


def follow(recipe: TrainRecipe, n_updates: int) -> Rates:
    """The rates of adapter and rows before each update."""
    adapter, rows = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW(
        [
            {"params": [adapter], "name": "decaying", "lr": recipe.learning_rate},
            {"params": [rows], "name": "token rows", "lr": recipe.row_learning_rate},
        ]
    )
    schedule = build_schedule(optimizer, recipe, n_updates)
    rates = []
    for _ in range(n_updates):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant", "constant_with_warmup"])
def test_without_row_warmup_all_groups_follow_the_one_schedule(scheduler: str) -> None:
    recipe = TrainRecipe(scheduler=scheduler, warmup=0.2, learning_rate=1.0, row_learning_rate=5.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    plain = get_scheduler(scheduler, optimizer, num_warmup_steps=4, num_training_steps=20)
    for adapter, rows in follow(recipe, 20):
        assert adapter == pytest.approx(plain.get_last_lr()[0])
        assert rows == pytest.approx(5 * adapter)
        optimizer.step()
        plain.step()


def test_with_row_warmup_the_rest_waits_and_then_goes_its_whole_way() -> None:
    recipe = TrainRecipe(warmup=0.1, row_warmup=0.5, learning_rate=1.0, row_learning_rate=1.0)
    adapter, rows = zip(*follow(recipe, 20), strict=True)
    assert adapter[:10] == (0.0,) * 10
    assert max(adapter) == 1.0
    assert adapter[11] == 1.0  # one update of warm-up, as a tenth of ten
    assert rows[2] == 1.0 and min(rows[1:10]) > 0.4
    assert count_alone(recipe, 20) == 10
    assert count_alone(recipe.model_copy(update={"row_warmup": 0.01}), 20) == 1
    assert count_alone(recipe.model_copy(update={"row_warmup": 0.0}), 20) == 0


@pytest.mark.parametrize("method", ["dora", "full"])
def test_rows_norms_and_sizes_do_not_decay(
    method: str, bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    rate = {"row_learning_rate": 0.5} if method == "dora" else {}
    recipe = recipe.model_copy(update={"method": method, "weight_decay": 0.1, **rate})
    model = begin(recipe, bases("qwen3"), inputs).model
    names = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    decaying = {name for name in names.values() if "norm" not in name}
    groups = group_parameters(model, decaying, recipe)
    found = {group["name"]: {names[id(value)] for value in group["params"]} for group in groups}
    assert sum(map(len, found.values())) == len(names)
    decays = {group["name"]: group["weight_decay"] for group in groups}
    rates = {group["name"]: group["lr"] for group in groups}
    assert decays["decaying"] == 0.1 and decays["others"] == 0.0
    if method == "full":
        assert found.keys() == {"decaying", "others"}
        assert all("norm" in name for name in found["others"])
        return
    assert all("magnitude" in name for name in found["others"])
    assert all(ROW_PARAMETER in name for name in found["token rows"])
    assert decays["token rows"] == 0.0
    assert rates == {"decaying": recipe.learning_rate, "others": recipe.learning_rate} | {
        "token rows": 0.5
    }


def test_only_rows_move_until_row_warmup_is_over(
    bases: Callable[[str], Path],
    inputs: Inputs,
    recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"row_warmup": 0.5, "max_steps": 6, "eval_every": 0.0, "warmup": 0.0}
    recipe = recipe.model_copy(update={**values, "weight_decay": 0.5, "dropout": 0.1})
    run = begin(recipe, bases("llama"), inputs)
    snapshots = [weights(run.model)]

    class Watch(TrainerCallback):
        def on_step_end(self, *_arguments: object, **_words: object) -> None:
            snapshots.append(weights(run.model))

    def build(*arguments: Any, **words: Any) -> CompletionTrainer:
        made = CompletionTrainer(*arguments, **words)
        made.add_callback(Watch())
        return made

    monkeypatch.setattr(sft, "CompletionTrainer", build)
    train_rows(run.model, run.pad_token_id, run.rows, None, recipe, tmp_path)
    assert len(snapshots) == 7
    for before, after in itertools.pairwise(snapshots[:4]):
        moved = {name for name in before if not before[name].equal(after[name])}
        assert moved and all(ROW_PARAMETER in name for name in moved)
    moved = {name for name in snapshots[3] if not snapshots[3][name].equal(snapshots[6][name])}
    assert any("lora_A" in name for name in moved) and any("lora_B" in name for name in moved)

"""Which weights learn when, and how fast.

Owns the optimizer's groups and their schedules. Knows nothing of the loop that steps them.

Weight decay pulls matrices towards zero and nothing else: token rows, norms, biases and DoRA's
sizes do not decay. A token row is seen only where its item is, and would decay at every update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from genrec.train.adapter import ROW_PARAMETER
from genrec.train.recipe import TrainRecipe

_NO_DECAY = (ROW_PARAMETER, "lora_magnitude_vector")
_ROWS = "token rows"

Factor = Callable[[int], float]


def group_parameters(
    model: nn.Module, decaying: set[str], recipe: TrainRecipe
) -> list[dict[str, Any]]:
    """The optimizer's groups: decaying weights, others, and the token rows; none is empty.

    Args:
        model: prepared for training.
        decaying: names of the parameters that are neither norm nor bias, as Trainer finds them.
        recipe: learning_rate, row_learning_rate, weight_decay.
    """
    names: dict[str, list[nn.Parameter]] = {"decaying": [], "others": [], _ROWS: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ROW_PARAMETER in name:
            names[_ROWS].append(parameter)
        elif name in decaying and not any(part in name for part in _NO_DECAY):
            names["decaying"].append(parameter)
        else:
            names["others"].append(parameter)
    return [
        {
            "params": parameters,
            "name": name,
            "weight_decay": recipe.weight_decay if name == "decaying" else 0.0,
            "lr": (recipe.row_learning_rate if name == _ROWS else None) or recipe.learning_rate,
        }
        for name, parameters in names.items()
        if parameters
    ]


def build_schedule(optimizer: Optimizer, recipe: TrainRecipe, n_updates: int) -> LambdaLR:
    """The learning rates over the run: one shape for all groups, the token rows perhaps earlier.

    With `row_warmup`, every other group stands still (a rate of zero moves no bit) for that share
    of the updates, and then goes through warm-up and fall in the time that is left.

    Args:
        optimizer: with the groups of `group_parameters`.
        recipe: scheduler, warmup, row_warmup.
        n_updates: how many updates there will be.
    """
    n_alone = count_alone(recipe, n_updates)
    whole = _shape(optimizer, recipe, n_updates)
    if not n_alone:
        return LambdaLR(optimizer, whole)
    rest = _shape(optimizer, recipe, n_updates - n_alone)

    def wait(update: int) -> float:
        return 0.0 if update < n_alone else rest(update - n_alone)

    return LambdaLR(
        optimizer,
        [whole if group["name"] == _ROWS else wait for group in optimizer.param_groups],
    )


def count_alone(recipe: TrainRecipe, n_updates: int) -> int:
    """In how many updates only the token rows learn; at least one where row_warmup is set."""
    return max(round(recipe.row_warmup * n_updates), 1) if recipe.row_warmup else 0


def _shape(optimizer: Optimizer, recipe: TrainRecipe, n_updates: int) -> Factor:
    schedule: Any = get_scheduler(
        recipe.scheduler,
        optimizer,
        num_warmup_steps=round(recipe.warmup * n_updates),
        num_training_steps=n_updates,
    )
    factor: Factor = schedule.lr_lambdas[0]
    return factor

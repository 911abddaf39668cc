"""How much of each task a run has trained on, and how well.

Owns the sums by task, and their names in the Trainer's log. Reads no model: the losses are those of
the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_PREFIX = "tasks/"
_COUNTS = ("rows", "target_tokens", "tokens")


class TaskTally:
    """Sums by task since they were last taken."""

    def __init__(self, names: Sequence[str]) -> None:
        """Count tasks of these names."""
        self._names = names
        self._sums: torch.Tensor | None = None

    def add(self, tasks: torch.Tensor, rows: torch.Tensor) -> None:
        """Count the rows of a batch.

        Shapes:
            tasks: (U,) int64, each row's task; rows: (U, 3) float64, as `loss.sum_rows` gives it.
        """
        if self._sums is None:
            # On the losses' device, so that no step waits for the figures.
            self._sums = rows.new_zeros(len(self._names), 4)
        figures = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        self._sums.index_add_(0, tasks, figures)

    def take(self, add_up: Callable[[torch.Tensor], Any]) -> dict[str, float]:
        """The sums of all processes under the log's names, and none left.

        Args:
            add_up: sums a tensor over processes, each of which must call this.
        """
        if self._sums is None:
            return {}
        sums = add_up(self._sums).tolist()
        self._sums = None
        return {
            f"{_PREFIX}{name}/{figure}": value
            for name, (loss, targets, tokens, rows) in zip(self._names, sums, strict=True)
            if rows
            for figure, value in (
                ("loss", loss / max(targets, 1)),
                *zip(_COUNTS, (rows, targets, tokens), strict=True),
            )
        }


def name_eval_losses(losses: Mapping[str, float]) -> dict[str, float]:
    """Validation losses by task under the log's names."""
    return {f"{_PREFIX}{task}/eval_loss": loss for task, loss in losses.items()}


def group_figures(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each task in one entry of the Trainer's log, counts as whole numbers."""
    tasks: dict[str, dict[str, float]] = {}
    for key, value in entry.items():
        if key.startswith(_PREFIX):
            task, _, figure = key.removeprefix(_PREFIX).rpartition("/")
            tasks.setdefault(task, {})[figure] = int(value) if figure in _COUNTS else value
    return tasks


def sum_tasks(
    history: Sequence[Mapping[str, Any]], best_step: int | None
) -> dict[str, dict[str, float]]:
    """The tasks of a whole run: counts in all, the last losses, and validation at the best step.

    Args:
        history: the Trainer's log, which a resumed run goes on with.
        best_step: the step whose weights are kept; None takes the last validation.
    """
    tasks: dict[str, dict[str, float]] = {}
    for entry in history:
        for task, figures in group_figures(entry).items():
            known = tasks.setdefault(task, dict.fromkeys(_COUNTS, 0))
            for figure, value in figures.items():
                if figure in _COUNTS:
                    known[figure] += value
                elif figure == "loss" or best_step in (None, 0, entry["step"]):
                    known[figure] = value
    return tasks

"""What training minimises: the mean cross-entropy over target tokens.

Owns the loss, and whose it is. Knows nothing of models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from genrec.train.batches import IGNORED_LABEL


def completion_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The mean cross-entropy over target tokens.

    Args:
        outputs: the model's, with the logits of the positions before targets.
        labels: as `batches` makes them.
        num_items_in_batch: target tokens of all accumulated batches and processes; None takes
            those of this batch.
        label_smoothing: share of the target spread over the vocabulary.
    """
    losses = target_losses(outputs.logits, labels, label_smoothing=label_smoothing)
    return average_losses(losses, labels, num_items_in_batch)


def target_losses(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The cross-entropy of every target token; 0 where a label is ignored.

    Shapes:
        logits: (U, C, V); labels: (U, C + 1) int64; returns (U, C) float32.
    """
    targets = labels[:, 1:]
    return cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=label_smoothing,
    ).view_as(targets)


def average_losses(
    losses: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The losses' sum, divided by how many targets there are."""
    if num_items_in_batch is None:
        return losses.sum() / (labels[:, 1:] != IGNORED_LABEL).sum()
    return losses.sum() / num_items_in_batch


def sum_rows(
    losses: torch.Tensor, labels: torch.Tensor, about: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Each row's loss, target tokens and tokens.

    Args:
        losses: what `target_losses` gave.
        labels: the batch's.
        about: what the batch says of its rows.

    Shapes:
        returns (U, 3) float64.
    """
    counted = labels[:, 1:] != IGNORED_LABEL
    values = torch.stack([losses.detach().double(), counted.double()], dim=-1)
    sums = values.new_zeros(len(about["tokens"]), 2)
    sums.index_add_(0, about["target_rows"].flatten(), values.flatten(0, 1))
    return torch.cat([sums, about["tokens"].double()[:, None]], dim=1)

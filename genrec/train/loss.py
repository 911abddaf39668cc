"""What training minimises: the mean cross-entropy over target tokens.

Owns the loss and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from genrec.train.rows import IGNORED_LABEL


def completion_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The mean cross-entropy over target tokens.

    Args:
        outputs: the model's, with the logits of the last C + 1 positions.
        labels: as `collate_rows` makes them.
        num_items_in_batch: target tokens of all accumulated batches and processes.
        label_smoothing: share of the target spread over the vocabulary.

    Shapes:
        outputs.logits: (U, C + 1, V); labels: (U, C + 1) int64.
    """
    targets = labels[:, 1:].flatten()
    total = cross_entropy(
        outputs.logits[:, :-1].float().flatten(0, 1),
        targets,
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if num_items_in_batch is None:
        return total / (targets != IGNORED_LABEL).sum()
    return total / num_items_in_batch

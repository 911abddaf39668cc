"""Ways to train on the same batches of rows: packed, padded, and as LC-Rec does.

Owns the steps that are timed against each other. Knows neither where rows come from nor what is
reported.

Source: LC-Rec (Zheng et al. 2024), whose collator pads the shuffled rows of a batch to the longest
on the right and masks the labels of prompt and padding, and whose model then computes its own loss
from logits over the whole vocabulary at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from genrec.bench.rows import time_rivals
from genrec.train.batches import ABOUT, IGNORED_LABEL, Collator
from genrec.train.loss import completion_loss
from genrec.train.packing import pack_attention
from genrec.train.rows import EncodedRow, EncodedRows

LEARNING_RATE = 1e-4
_PAD = 0
Batches = Sequence[Sequence[EncodedRow]]


class Rival:
    """One way to train a model of its own; call it for a pass over all batches.

    Attributes:
        losses: of every step so far, the mean over its target tokens.
    """

    def __init__(self, model: Any, batches: Batches, find_loss: Callable[..., Any]) -> None:
        """Train `model` on `batches` by the loss that `find_loss(model, rows)` gives."""
        self.losses: list[float] = []
        self._model = model.train()
        self._batches = batches
        self._find_loss = find_loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def __call__(self) -> None:
        """One pass: for each batch make the tensors, go forward and back, and update."""
        device = next(self._model.parameters()).device
        losses = []
        for rows in self._batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = self._find_loss(self._model, rows)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            losses.append(loss.detach())
        # Read at the end only: no step waits for a device.
        self.losses += torch.stack(losses).tolist()


def find_packed_loss(model: Any, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Our loss of rows laid end to end; inside `pack_attention` only."""
    return _find_own_loss(model, rows, packed=True)


def find_padded_loss(model: Any, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Our loss of padded rows, the head over the targets alone."""
    return _find_own_loss(model, rows, packed=False)


def _find_own_loss(model: Any, rows: Sequence[EncodedRow], *, packed: bool) -> torch.Tensor:
    batch = Collator(_PAD, packed=packed)(rows)
    batch = send_to_device(batch, next(model.parameters()).device)
    del batch[ABOUT]
    labels = batch.pop("labels")
    return completion_loss(model(**batch, use_cache=False), labels)


def find_lcrec_loss(model: Any, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """The model's own loss of rows padded on the right."""
    width = max(len(row.input_ids) for row in rows)
    ids = np.full((len(rows), width), _PAD, dtype=np.int64)
    labels = np.full_like(ids, IGNORED_LABEL)
    mask = np.zeros_like(ids)
    for line, row in enumerate(rows):
        length = len(row.input_ids)
        ids[line, :length], mask[line, :length] = row.input_ids, 1
        labels[line, row.n_prompt : length] = row.input_ids[row.n_prompt :]
    device = next(model.parameters()).device
    loss: torch.Tensor = model(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        labels=torch.from_numpy(labels).to(device),
        use_cache=False,
    ).loss
    return loss


@dataclass(frozen=True, slots=True)
class Timed:
    """What each way took and lost, by name: packed, padded, lcrec.

    Attributes:
        seconds: of each pass over the batches.
        losses: of each step.
    """

    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]

    def compare_speed(self, name: str, rival: str) -> float:
        """How many times as fast `name` is, the median over the rounds."""
        return float(np.median(np.array(self.seconds[rival]) / np.array(self.seconds[name])))


def time_ways(
    build_model: Callable[[], Any], rows: EncodedRows, batches: Batches, repeats: int
) -> Timed:
    """Each way with its own copy of one model, taking turns.

    Args:
        build_model: makes the model, the same at every call, prepared for training.
        rows: all rows, to try packing on.
        batches: what one pass goes over.
        repeats: passes that count, after one that does not.
    """
    ways = {"packed": find_packed_loss, "padded": find_padded_loss, "lcrec": find_lcrec_loss}
    models = {name: build_model() for name in ways}
    with pack_attention(models["packed"], rows) as packed:
        assert packed, "the model's attention is what packing is made for"
        rivals = {name: Rival(models[name], batches, ways[name]) for name in ways}
        seconds = time_rivals(rivals, repeats)
    return Timed(seconds, {name: rival.losses for name, rival in rivals.items()})

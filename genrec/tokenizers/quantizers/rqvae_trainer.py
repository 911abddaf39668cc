"""One training run of an RQ-VAE.

Owns the schedule: batches, warm-up, validation, early stop, and which weights are kept. Knows
neither items nor how codes are made.

Source: LC-Rec (Zheng et al. 2024, section 4.1.4) for optimizer and sizes. Unlike it and TIGER
(Rajput et al. 2023), codes are placed only after some epochs as a plain autoencoder, when latents
mean something, and training stops when held-out items stop improving.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.progress import show_progress
from genrec.tokenizers.quantizers.losses import AuxiliaryLoss, TrainBatch
from genrec.tokenizers.quantizers.rqvae_network import RqVaeNetwork
from genrec.tokenizers.quantizers.rqvae_rows import Batch, TrainingRows, measure_scale
from genrec.tokenizers.sections import RqVaeSection

_CHUNK_ITEMS = 8192
_FEWEST_TO_HOLD_OUT = 20
_MOST_TO_HOLD_OUT = 50_000
_MOST_TO_PLACE = 65_536
_MOST_DISTANCES = 1 << 26
_LEAST_GAIN = 1e-3
_SLOWER = 0.3
_STALLS = 3
_log = logging.getLogger(__name__)


class RqVaeTrainer:
    """The state of one run: the network, its items, and the best weights so far."""

    def __init__(
        self,
        network: RqVaeNetwork,
        rows: TrainingRows,
        values: RqVaeSection,
        losses: Sequence[AuxiliaryLoss] = (),
    ) -> None:
        """Scale the network to the vectors, hold some out, and set up the optimizer."""
        self._network = network
        self._rows = rows
        self._values = values
        self._losses = losses
        center, scale = measure_scale(rows.vectors)
        network.center.copy_(torch.from_numpy(center))
        network.scale.fill_(scale)
        order = torch.randperm(len(rows))
        held_out = min(max(1, round(len(rows) * values.valid_share)), _MOST_TO_HOLD_OUT)
        if len(rows) < _FEWEST_TO_HOLD_OUT:  # too few to spare any: watch what is fitted
            self._train, self._valid = order, order
        else:
            self._train, self._valid = order[held_out:], order[:held_out].sort().values
        parameters = [*network.parameters(), *(p for loss in losses for p in _move(loss, network))]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=values.learning_rate, weight_decay=values.weight_decay
        )
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer,
            factor=_SLOWER,
            patience=values.patience_epochs // _STALLS,
            threshold=_LEAST_GAIN,
        )
        self._ends = math.inf

    def train(self) -> list[dict[str, float]]:
        """Train to the early stop and put the best weights back; losses by epoch."""
        values = self._values
        started = time.monotonic()
        self._ends = started + (values.max_seconds or math.inf)
        history: list[dict[str, float]] = []
        best_loss, best_epoch = math.inf, 0
        best: dict[str, Tensor] = {}
        with show_progress("training RQ-VAE", total=values.max_epochs, unit="epochs") as advance:
            for epoch in range(values.max_epochs):
                plain = epoch < min(values.warmup_epochs, values.max_epochs - 1) and not (
                    epoch and self._is_over()
                )
                if not plain and not best:
                    self._place_codes()
                record = {"epoch": float(epoch), "warmup": float(plain), **self._run_epoch(plain)}
                error = record["valid_error"] = self._validate(plain)
                # Further losses are there to fit the items that are known, so what they gain is
                # weighed against reconstruction as it was in training, not on held-out items.
                loss = error + record.get("auxiliary", 0.0)
                history.append(record)
                advance(1, note=f"validation error {error:.4f}")
                if plain:
                    continue
                self._scheduler.step(loss)
                if loss < best_loss * (1 - _LEAST_GAIN) or not best:
                    best_loss, best_epoch = loss, epoch
                    state = self._network.state_dict()
                    best = {name: value.clone() for name, value in state.items()}
                if epoch - best_epoch >= values.patience_epochs or self._is_over():
                    break
        self._network.load_state_dict(best)
        _log.info(
            "RQ-VAE: best validation loss %.4f in epoch %d of %d (%.1f s)",
            best_loss,
            best_epoch,
            len(history),
            time.monotonic() - started,
        )
        return history

    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends

    def _encode(self, batch: Batch) -> Tensor:
        return self._network.encode_latents(batch.vectors, batch.numbers)

    def _place_codes(self) -> None:
        """Have the codes placed on the latents of the training items, or a sample of them."""
        self._network.eval()
        widest = max(len(book) for book in self._network.codes.list_codebooks())
        most = min(_MOST_TO_PLACE, max(_MOST_DISTANCES // widest, widest))
        rows = self._train[:most].sort().values
        with torch.no_grad():
            latents = [self._encode(self._rows.read(part)) for part in rows.split(_CHUNK_ITEMS)]
            batch_size = min(self._values.batch_size, len(self._train))
            self._network.codes.place_codes(torch.cat(latents), batch_size)

    def _run_epoch(self, plain: bool) -> dict[str, float]:
        """One pass over the training items, or as far as time allows; the mean of its losses."""
        self._network.train()
        if not plain:
            books = self._network.codes.list_codebooks()
            for loss in self._losses:
                loss.start_epoch(books)
        order = self._train[torch.randperm(len(self._train))]
        steps = []
        for rows in order.tensor_split(math.ceil(len(order) / self._values.batch_size)):
            # In rising order, which disks like; the order within a batch means nothing.
            steps.append(self._take_step(self._rows.read(rows.sort().values), plain))
            if self._is_over():
                break
        loss, auxiliary = torch.stack(steps).mean(dim=0).tolist()
        return {"loss": loss, **({"auxiliary": auxiliary} if self._losses else {})}

    def _take_step(self, batch: Batch, plain: bool) -> Tensor:
        """One step of the optimizer; the loss and the auxiliary losses' part in it."""
        network = self._network
        latents = self._encode(batch)
        auxiliary = latents.new_zeros(())
        if plain:
            loss = network.measure_error(batch.vectors, latents)
        else:
            books = network.codes.list_codebooks()
            quantized = network.codes(latents)
            loss = network.measure_error(batch.vectors, quantized.values) + quantized.loss
            if self._losses:
                seen = TrainBatch(batch.rows, latents, quantized.values, quantized.codes, books)
                auxiliary = torch.stack([part.measure(seen) for part in self._losses]).sum()
        loss = loss + auxiliary
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return torch.stack([loss.detach(), auxiliary.detach()])

    def _validate(self, plain: bool) -> float:
        """The held-out items' reconstruction error."""
        self._network.eval()
        total = 0.0
        with torch.inference_mode():
            for rows in self._valid.split(_CHUNK_ITEMS):
                batch = self._rows.read(rows)
                latents = self._encode(batch)
                if not plain:
                    latents = self._network.codes(latents).values
                error = self._network.measure_error(batch.vectors, latents)
                total += float(error) * len(rows)
        return total / len(self._valid)


def _move(loss: AuxiliaryLoss, network: RqVaeNetwork) -> list[torch.nn.Parameter]:
    """What a loss learns, moved to where the network is."""
    parameters = list(loss.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.to(network.center.device)
    return parameters

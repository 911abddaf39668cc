"""RQ-VAE: an autoencoder whose latent is a sum of codes, one from each level.

Owns the network, its training and the greedy encoding. Knows neither items nor uniqueness.

Source: TIGER (Rajput et al. 2023, section 3.1) and LC-Rec (Zheng et al. 2024, section 3.2.1).
Unlike both, codes follow moving averages instead of gradients, unused codes restart, and k-means
places the codes only after some epochs as a plain autoencoder, when latents mean something.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ

from genrec.errors import ArtifactError
from genrec.progress import show_progress
from genrec.tokenizers.assign import CodeArray
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sections import RqVaeSection
from genrec.tokenizers.vectors import read_chunks
from genrec.types import FloatArray

_CHUNK_ITEMS = 8192
_FEWEST_TO_HOLD_OUT = 20
_LEAST_GAIN = 1e-3
_JITTER = 1e-4
_log = logging.getLogger(__name__)


class RqVaeNetwork(nn.Module):
    """Encoder, residual quantizer and decoder, on vectors centred and scaled to unit variance."""

    center: Tensor
    scale: Tensor

    def __init__(
        self, dimensions: int, codebook_sizes: Sequence[int], values: RqVaeSection
    ) -> None:
        """Random weights; codebooks are placed by k-means at their first batch."""
        super().__init__()
        sizes = (dimensions, *values.hidden_sizes, values.latent_size)
        self.encoder = _stack_layers(sizes)
        self.decoder = _stack_layers(sizes[::-1])
        self.quantizer = ResidualVQ(
            dim=values.latent_size,
            codebook_size=tuple(codebook_sizes),
            kmeans_init=True,
            kmeans_iters=values.kmeans_iterations,
            decay=values.codebook_decay,
            commitment_weight=values.commitment,
            rotation_trick=values.rotation_trick,
        )
        self.register_buffer("center", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(()))

    def encode_latents(self, vectors: Tensor) -> Tensor:
        """(n, D) vectors to (n, d) latents."""
        latents: Tensor = self.encoder((vectors - self.center) / self.scale)
        return latents

    def quantize_latents(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, d) latents to their quantized selves, (n, L) codes and the commitment loss."""
        quantized, codes, losses = self.quantizer(latents[None])
        return quantized[0], codes[0], losses.sum()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(n, d) latents to (n, D) vectors."""
        vectors: Tensor = self.decoder(latents) * self.scale + self.center
        return vectors

    def measure_error(self, vectors: Tensor, latents: Tensor) -> Tensor:
        """The mean squared error of what latents decode to, as a share of the data's variance."""
        return functional.mse_loss(self.decode_latents(latents), vectors) / self.scale**2

    def codebook_rows(self) -> list[Tensor]:
        """One codebook (K, d) a level."""
        return [layer.codebook for layer in self.quantizer.layers]


def _stack_layers(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _split_rows(rows: NDArray[Any]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _CHUNK_ITEMS):
        yield torch.from_numpy(rows[start : start + _CHUNK_ITEMS])


class RqVae:
    """The quantizer that the recipe's `rqvae` section describes."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """A network with random weights drawn from the recipe's seed."""
        self._recipe = recipe
        self._values = recipe.rqvae
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self._network = RqVaeNetwork(dimensions, recipe.codebook_sizes, self._values).eval()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The recipe's."""
        return self._recipe.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, d) a level, as fitted."""
        rows = self._network.codebook_rows()
        return tuple(book.detach().cpu().numpy().astype(np.float32) for book in rows)

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Train until held-out items stop improving, keep the best; losses by epoch.

        With the same seed, machine and number of threads the result is the same, bit by bit.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self._recipe.seed)
            vectors = torch.from_numpy(np.array(given.rows[:]))
            trainer = _Trainer(self._network, vectors, self._values)
            history = trainer.train()
        self._network.eval()
        return history

    def project(self, given: FitInput) -> FloatArray:
        """The encoder's latents, (N, d)."""
        with torch.inference_mode():
            chunks = [
                self._network.encode_latents(torch.from_numpy(chunk))
                for _, chunk in read_chunks(given.rows)
            ]
        return torch.cat(chunks).numpy()

    def encode(self, given: FitInput) -> CodeArray:
        """At each level the code nearest to what the levels before left over."""
        with torch.inference_mode():
            codes = [
                self._network.quantize_latents(
                    self._network.encode_latents(torch.from_numpy(chunk))
                )[1]
                for _, chunk in read_chunks(given.rows)
            ]
        return torch.cat(codes).numpy().astype(np.int32)

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """What the decoder makes of the sum of the codes' rows."""
        books = self._network.codebook_rows()
        with torch.inference_mode():
            chunks = []
            for chunk in _split_rows(codes.astype(np.int64)):
                rows = [book[chunk[:, level]] for level, book in enumerate(books)]
                chunks.append(self._network.decode_latents(torch.stack(rows).sum(0)))
        return torch.cat(chunks).numpy()

    def list_weights(self) -> dict[str, FloatArray]:
        """Every weight, moving average and scale, by name."""
        state = self._network.state_dict()
        return {name: value.cpu().float().numpy().copy() for name, value in state.items()}

    def restore_weights(self, weights: dict[str, FloatArray]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this network does not have.
        """
        own = self._network.state_dict()
        problems = sorted(own.keys() ^ weights.keys()) + sorted(
            name
            for name in own.keys() & weights.keys()
            if tuple(own[name].shape) != weights[name].shape
        )
        if problems:
            raise ArtifactError(
                f"weights are not those of this RQ-VAE; names or shapes differ: "
                f"{', '.join(problems[:5])}"
            )
        given = {name: torch.from_numpy(weights[name]).to(own[name].dtype) for name in own}
        self._network.load_state_dict(given)


class _Trainer:
    """One training run of a network on one set of vectors."""

    def __init__(self, network: RqVaeNetwork, vectors: Tensor, values: RqVaeSection) -> None:
        self._network = network
        self._values = values
        network.center.copy_(vectors.mean(dim=0))
        deviation = (vectors - network.center).square().mean().sqrt()
        network.scale.copy_(deviation if deviation > 0 else torch.ones(()))
        order = torch.randperm(len(vectors))
        held_out = max(1, round(len(vectors) * values.valid_share))
        if len(vectors) < _FEWEST_TO_HOLD_OUT:  # too few to spare any: watch what is fitted
            self._train, self._valid = vectors, vectors
        else:
            self._train, self._valid = vectors[order[held_out:]], vectors[order[:held_out]]
        self._optimizer = torch.optim.AdamW(
            [*network.encoder.parameters(), *network.decoder.parameters()],
            lr=values.learning_rate,
            weight_decay=values.weight_decay,
        )
        self._set_dead_codes()

    def _set_dead_codes(self) -> None:
        """Turn the share of an even use, which fits any size, into the items a batch it means."""
        batch = min(self._values.batch_size, len(self._train))
        for layer in self._network.quantizer.layers:
            even = batch / layer.codebook_size
            layer._codebook.threshold_ema_dead_code = self._values.dead_code_share * even
            layer._codebook.reset_cluster_size = self._values.dead_code_share * even

    def train(self) -> list[dict[str, float]]:
        """Train to the early stop and put the best weights back; losses by epoch."""
        values = self._values
        started = time.monotonic()
        history: list[dict[str, float]] = []
        best_error, best_epoch = float("inf"), 0
        best: dict[str, Tensor] = {}
        with show_progress("training RQ-VAE", total=values.max_epochs, unit="epochs") as advance:
            for epoch in range(values.max_epochs):
                plain = epoch < min(values.warmup_epochs, values.max_epochs - 1)
                if not plain and not best:
                    self._place_codes()
                loss = self._run_epoch(plain)
                error = self._validate(plain)
                history.append(
                    {"epoch": epoch, "warmup": float(plain), "loss": loss, "valid_error": error}
                )
                advance(1, note=f"validation error {error:.4f}")
                if plain:
                    continue
                if error < best_error * (1 - _LEAST_GAIN) or not best:
                    best_error, best_epoch = error, epoch
                    state = self._network.state_dict()
                    best = {name: value.clone() for name, value in state.items()}
                if epoch - best_epoch >= values.patience_epochs:
                    break
        self._network.load_state_dict(best)
        _log.info(
            "RQ-VAE: best validation error %.4f in epoch %d of %d (%.1f s)",
            best_error,
            best_epoch,
            len(history),
            time.monotonic() - started,
        )
        return history

    def _place_codes(self) -> None:
        """Let k-means place the codebooks on the latents of all training items.

        Fewer items than codes are repeated with a little noise: k-means needs one row a code.
        """
        widest = max(self._network.quantizer.codebook_sizes)
        with torch.no_grad():
            latents = self._network.encode_latents(self._train)
            if len(latents) < widest:
                repeats = -(-widest // len(latents))
                latents = latents.repeat(repeats, 1)[: max(widest, len(self._train))]
                spread = latents.std().nan_to_num() + _JITTER
                latents = latents + torch.randn_like(latents) * spread * _JITTER
            self._network.train()
            self._network.quantize_latents(latents)

    def _run_epoch(self, plain: bool) -> float:
        """One pass over the training items; the mean loss of its steps."""
        self._network.train()
        order = torch.randperm(len(self._train))
        n_batches = -(-len(order) // self._values.batch_size)
        total = 0.0
        for rows in order.tensor_split(n_batches):
            batch = self._train[rows]
            latents = self._network.encode_latents(batch)
            commitment: Tensor | float = 0.0
            if not plain:
                latents, _, commitment = self._network.quantize_latents(latents)
            loss = self._network.measure_error(batch, latents) + commitment
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            total += float(loss.detach())
        return total / n_batches

    def _validate(self, plain: bool) -> float:
        self._network.eval()
        with torch.inference_mode():
            latents = self._network.encode_latents(self._valid)
            if not plain:
                latents = self._network.quantize_latents(latents)[0]
            return float(self._network.measure_error(self._valid, latents))

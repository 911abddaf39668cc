"""The autoencoder around codes: vectors to latents, latents to vectors.

Owns its layers and what it asks of the codes in its middle. Knows neither how they are made nor how
it is trained.

Source: LC-Rec (Zheng et al. 2024, section 3.2.1) and its code for the layers (linear, ReLU between,
dropout before, Xavier's start). Deviation: vectors are centred and scaled to unit variance, so that
one learning rate suits all encoders.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.sections import RqVaeSection
from genrec.types import IndexArray


@dataclass(frozen=True, slots=True)
class Quantized:
    """Latents after quantizing.

    Shapes:
        values: (n, d), the sum of the codes' rows; its gradient goes on to the latents.
        codes: (n, L) int64; -1 at levels that quantize dropout left out.
        loss: a scalar, what latents and codes are pulled towards each other with.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor


class CodeLayer(Protocol):
    """The middle of the network, a module: it turns latents into sums of codes."""

    @property
    def width(self) -> int:
        """d, the width of the latents."""
        ...

    def __call__(self, latents: Tensor) -> Quantized:
        """Latents (n, d) quantized, and in training mode the codes moved."""
        ...

    def bound_latents(self, outputs: Tensor) -> Tensor:
        """The encoder's outputs (n, d) where codes can reach them."""
        ...

    def list_codebooks(self) -> list[Tensor]:
        """One codebook (K, d) a level."""
        ...

    def place_codes(self, latents: Tensor, batch_size: int) -> None:
        """Make ready for training on batches of that size, given latents (n, d) of many items."""
        ...


class Fusion(Protocol):
    """A module that joins vectors with what else is known of each item, before the encoder."""

    def number_items(self, given: FitInput) -> IndexArray:
        """The number (N,) that the module knows each item by."""
        ...

    def __call__(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """Scaled vectors (n, D) and numbers (n,) to inputs (n, D) of the encoder."""
        ...


class RqVaeNetwork(nn.Module):
    """Encoder, codes and decoder, on vectors centred and scaled to unit variance."""

    center: Tensor
    scale: Tensor
    codes: CodeLayer
    fusion: Fusion | None

    def __init__(
        self,
        dimensions: int,
        codes: CodeLayer,
        values: RqVaeSection,
        fusion: Fusion | None = None,
    ) -> None:
        """Random weights around codes, and a fusion where vectors are not all there is."""
        super().__init__()
        sizes = (dimensions, *values.hidden_sizes, codes.width)
        self.encoder = _stack_layers(sizes, values.dropout)
        self.decoder = _stack_layers(sizes[::-1], values.dropout)
        self.codes = codes
        self.fusion = fusion
        self.register_buffer("center", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(()))

    def encode_latents(self, vectors: Tensor, numbers: Tensor | None = None) -> Tensor:
        """(n, D) vectors, and the (n,) numbers of a fusion, to (n, d) latents."""
        inputs = (vectors - self.center) / self.scale
        if self.fusion is not None:
            assert numbers is not None, "a fusion numbers its items"
            inputs = self.fusion(inputs, numbers)
        return self.codes.bound_latents(self.encoder(inputs))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(n, d) latents to (n, D) vectors."""
        vectors: Tensor = self.decoder(latents) * self.scale + self.center
        return vectors

    def measure_error(self, vectors: Tensor, latents: Tensor) -> Tensor:
        """The mean squared error of what latents decode to, as a share of the data's variance."""
        scaled = (vectors - self.center) / self.scale
        return functional.mse_loss(self.decoder(latents), scaled)


def _stack_layers(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        if dropout:
            layers.append(nn.Dropout(dropout))
        linear = nn.Linear(before, after)
        # torch's own start shrinks what it is given by 2.4 a layer: LC-Rec's seven never learned.
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])

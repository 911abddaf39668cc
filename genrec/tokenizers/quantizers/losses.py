"""What a further loss of an RQ-VAE is, and what it sees of a training step.

Owns the Protocol that the losses of LETTER and GMC meet. Knows no loss and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One training step, after quantizing.

    Shapes:
        rows: (n,) int64, which items these are.
        latents: (n, d), the encoder's output, with its gradient.
        quantized: (n, d), the sum of the codes' rows; its gradient goes on to the encoder.
        codes: (n, L) int64; -1 at levels that quantize dropout left out.
        codebooks: L tensors (K, d); with a gradient where codebooks learn by gradient.
    """

    rows: Tensor
    latents: Tensor
    quantized: Tensor
    codes: Tensor
    codebooks: Sequence[Tensor]


class AuxiliaryLoss(Protocol):
    """A loss that is added to reconstruction and commitment, its weight included."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """What it learns itself; trained with the network, not kept afterwards."""
        ...

    def start_epoch(self, codebooks: Sequence[Tensor]) -> None:
        """Called before each epoch that has codes."""
        ...

    def measure(self, batch: TrainBatch) -> Tensor:
        """The weighted loss of one step, a scalar."""
        ...


LossMaker = Callable[[TokenizeRecipe, FitInput, int], Sequence[AuxiliaryLoss]]
"""From the recipe, the items and d to the losses of one training run."""

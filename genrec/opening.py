"""One way to open a model for use, whichever kind it is and whatever runs it.

Owns which opener goes with which choice; the command line, batch workers and the server come
through here. Knows no option's name and no protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrec.recommender import Recommender

EngineName = Literal["torch", "vllm"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to open, and how; small enough to be sent to a worker.

    Attributes:
        model: a model directory of `genrec train`.
        engine: what runs it.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        dtype: of the weights; None takes float32 on CPU and bfloat16 on GPU.
    """

    model: Path
    engine: EngineName = "torch"
    device: str | None = None
    dtype: str | None = None


def open_recommender(choice: ModelChoice) -> Recommender:
    """The recommender of a choice.

    Raises:
        ArtifactError: the directory is missing, half written or changed.
        ModelError: it cannot be used.
    """
    return Recommender.from_pretrained(choice.model, device=choice.device, dtype=choice.dtype)

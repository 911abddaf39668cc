"""What `genrec bench train` is asked for.

Owns the options that its sections share. Knows no section.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainBench:
    """How much is measured, and on what.

    Attributes:
        data: folder of real data sets; without it, rows come from the synthetic set.
        quick: tiny models and few rows, to see that it runs; targets are left out.
        repeats: rounds in which rivals take turns; medians are shown.
        device: of the section `device`: cpu or cuda.
    """

    data: Path | None = None
    quick: bool = False
    repeats: int = 3
    device: str = "cpu"

    def target(self, value: float) -> float | None:
        """The target, unless sizes were changed."""
        return None if self.quick else value

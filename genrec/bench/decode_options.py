"""What `genrec bench decode` is asked for.

Owns the options that its sections share, and how large what they measure is. Knows no section.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """How much is measured, and on what.

    Attributes:
        quick: tiny models and catalogues, to see that it runs; targets are left out.
        repeats: rounds in which rivals take turns; medians are shown.
        device: of the section `device`: cpu or cuda.
        model: a model directory for the section `exact`; models with random weights are measured
            in any case.
    """

    quick: bool = False
    repeats: int = 3
    device: str = "cpu"
    model: Path | None = None

    def target(self, value: float | None) -> float | None:
        """The target, unless sizes were changed."""
        return None if self.quick else value

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return Sizes(16, 4, 300, 12, 64) if self.quick else Sizes()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large what is measured is.

    Attributes:
        n_tokens: of each prompt.
        width: beams a prompt, and answers.
        n_items: of the random catalogue.
        n_codes: of each of 4 levels.
        n_words: text tokens of the small model's vocabulary.
    """

    n_tokens: int = 200
    width: int = 20
    n_items: int = 100_000
    n_codes: int = 256
    n_words: int = 32_000

    def describe(self, n_prompts: int) -> str:
        """What every row's name says of it."""
        return f"{n_prompts} x {self.n_tokens} tokens, width {self.width}"

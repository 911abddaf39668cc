"""What `genrec bench tokenize` is asked for.

Owns the options that its sections share. Knows no section.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genrec.recipe import read_recipe
from genrec.tokenizers.recipe import TokenizeRecipe


@dataclass(frozen=True, slots=True)
class TokenizeBench:
    """How much is measured, and on what.

    Attributes:
        data: folder of real data sets; without it, vectors are made up.
        items: instead of each section's own size; targets then say nothing and are left out.
        repeats: rounds in which rivals take turns; medians are shown.
        device: of the section `device`: cpu or cuda.
        overrides: `key=value` laid over every recipe, for a quick look; no targets either.
    """

    data: Path | None = None
    items: int | None = None
    repeats: int = 1
    device: str = "cpu"
    overrides: tuple[str, ...] = ()

    def target(self, value: float) -> float | None:
        """The target, unless sizes or recipes were changed."""
        return None if self.items or self.overrides else value

    def read_recipe(self, name: str, *overrides: str) -> TokenizeRecipe:
        """A shipped recipe with the overrides laid over it."""
        changed = (*overrides, *self.overrides)
        return read_recipe(TokenizeRecipe, name, changed, kind="tokenize")

"""`genrec tokenize`: making a vocabulary of semantic IDs, and what is done with one afterwards.

Owns arguments; every command is one call. `genrec tokenize RECIPE ...` is short for
`genrec tokenize fit RECIPE ...`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genrec.terminal import Force, OutDir, Values, run_step


class _FitByDefault(TyperGroup):
    """A group whose first word need not name a command: without one, it is `fit`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `fit` before arguments that begin with no command's name."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["fit", *args]
        return super().parse_args(ctx, args)


tokenize_app = typer.Typer(
    cls=_FitByDefault,
    help="Step 3: embeddings to semantic IDs, one for each item and no two alike.",
    epilog="`genrec tokenize RECIPE ...` is short for `genrec tokenize fit RECIPE ...`.",
    no_args_is_help=True,
)


@tokenize_app.command("fit")
def fit(
    out: OutDir,
    values: Values = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="Output of `genrec embed`.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Output of `genrec data`, for recipes that look at interactions, titles or "
            "domains.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Fit a quantizer and give every item codes of its own.

    For example: `genrec tokenize lcrec --embeddings embeddings -o tokenizer`
    """
    given = {"embed": embeddings, "data": data}
    inputs = {step: path for step, path in given.items() if path is not None}
    run_step("tokenize", values, inputs, out, force)

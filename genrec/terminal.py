"""What every command of the command line shares: consoles, options, and how a step is run.

Owns the two consoles and the options that several commands take. Knows no command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from genrec.recipe import split_values

out_console = Console()
err_console = Console(stderr=True)

Values = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A recipe (path or shipped name) and values to lay over it.",
        show_default=False,
    ),
]
OutDir = Annotated[Path, typer.Option("--out", "-o", help="Directory for the artefact.")]
DataDir = Annotated[Path, typer.Option("--data", help="Output of `genrec data`.")]
EmbeddingsDir = Annotated[Path, typer.Option("--embeddings", help="Output of `genrec embed`.")]
TokenizerDir = Annotated[Path, typer.Option("--tokenizer", help="Output of `genrec tokenize`.")]
ModelDir = Annotated[Path, typer.Option("--model", "-m", help="Output of `genrec train`.")]
Engine = Annotated[
    str,
    typer.Option(help="Where texts and items are encoded: local, or ray (a cluster, Ray Data)."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="The Ray cluster; else $RAY_ADDRESS; else one is started here."),
]
Force = Annotated[bool, typer.Option("--force", help="Run again even if nothing has changed.")]


class GroupWithDefault(TyperGroup):
    """A group whose first word need not name a command: without one, it is `default`."""

    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default before arguments that begin with no command's name."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def run_step(
    name: str,
    values: Sequence[str] | None,
    inputs: dict[str, Path],
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """Run one step of the chain from the directories given, unless its output is up to date.

    Args:
        name: the step.
        values: recipe and overrides.
        inputs: directories by role.
        out: the directory to write.
        force: run it even if nothing has changed.
        options: what the step takes besides, which does not change its result.
    """
    from genrec.artifact import find_current, load_artifact
    from genrec.pipeline import ROLE_STEPS, STEPS, read_step

    recipe = read_step(name, *split_values(values))
    step = next(step for step in STEPS if step.name == name)
    loaded = {
        role: load_artifact(path, step=ROLE_STEPS.get(role, role)) for role, path in inputs.items()
    }
    if not force and find_current(out, step=name, recipe=recipe, inputs=loaded):
        out_console.print(
            f"{out} is up to date; nothing to do (--force runs it again)", soft_wrap=True
        )
        return
    artifact = step.make(recipe, loaded, out, **options)
    out_console.print(
        f"{name}: {artifact.path} ({artifact.manifest.seconds:.1f} s)", highlight=False
    )

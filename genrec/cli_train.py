"""`genrec train`: the step, and what it would take.

Owns arguments and how an estimate looks.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from genrec.errors import RecipeError
from genrec.recipe import split_values
from genrec.terminal import DataDir, Force, OutDir, TokenizerDir, Values, out_console, run_step

if TYPE_CHECKING:
    from genrec.train.estimate import Estimate


def train(
    data: DataDir,
    tokenizer: TokenizerDir,
    instructions: Annotated[Path, typer.Option(help="Output of `genrec prompts`.")],
    out: OutDir,
    values: Values = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Output of `genrec base` or `genrec train`; else base= names a checkpoint."
        ),
    ] = None,
    user_vectors: Annotated[
        Path | None,
        typer.Option(help="Output of `genrec embed subject=users`, for soft_user_tokens."),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Say what it would take, from the config alone, and end."),
    ] = False,
    force: Force = False,
) -> None:
    """Step 5: a base model and instruction data to a recommender (LoRA, or method=full)."""
    if estimate:
        from genrec.pipeline import read_step
        from genrec.train.estimate import estimate_run
        from genrec.train.recipe import TrainRecipe

        recipe = read_step("train", *split_values(values))
        assert isinstance(recipe, TrainRecipe)
        found = estimate_run(recipe, base, instructions, tokenizer, data, user_vectors=user_vectors)
        out_console.print(build_estimate(found), highlight=False)
        return
    inputs = {"data": data, "tokenize": tokenizer, "prompts": instructions}
    if base is not None:
        _check_base(base)
        inputs["base"] = base
    if user_vectors is not None:
        inputs["user_vectors"] = user_vectors
    run_step("train", values, inputs, out, force)


def _check_base(base: Path) -> None:
    from genrec.manifest import MANIFEST

    if base.is_dir() and not (base / MANIFEST).is_file():
        raise RecipeError(
            f"--base {base} is no output of `genrec base` or `genrec train` (it has no "
            f"{MANIFEST}); for any other checkpoint directory write base={base}"
        )


def build_estimate(found: Estimate) -> Table:
    """An estimate as a table: what is trained, memory by part, and time."""
    table = Table(title="Before training (estimated)", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    share = found.trained / found.parameters
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("trained", f"{found.trained:,} ({share:.1%})")
    table.add_row("of them token rows", f"{found.rows:,}")
    table.add_section()
    for name in ("weights", "gradients", "optimizer", "activations", "logits"):
        table.add_row(name, _format_size(getattr(found.memory, name)))
    table.add_row("memory on each process", _format_size(found.memory.total))
    table.add_section()
    table.add_row("updates", f"{found.updates:,}")
    table.add_row("tokens", f"{found.tokens:,}")
    table.add_row("operations", f"{found.flops:.2e}")
    seconds = found.seconds
    here = "not tried: too large, or qlora" if seconds is None else _format_time(seconds)
    table.add_row("time here, from timed steps", here)
    table.add_row("on one H100 at 40% of 989 TFLOP/s", _format_time(found.h100_seconds))
    return table


def _format_size(n_bytes: int) -> str:
    gibibytes = n_bytes / 2**30
    return f"{gibibytes:,.2f} GiB" if gibibytes >= 1 else f"{gibibytes * 1024:,.1f} MiB"


def _format_time(seconds: float) -> str:
    return str(timedelta(seconds=max(round(seconds), 1)))

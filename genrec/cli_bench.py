"""`genrec bench`: the figures behind the speed claims.

Owns arguments; every command is one call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(help="The figures behind the speed claims.", no_args_is_help=True)


@bench_app.callback()
def measure() -> None:
    """The figures behind the speed claims."""


@bench_app.command("decode")
def bench_decode(
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    items: Annotated[int, typer.Option(help="Size of the random catalogue.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
) -> None:
    """The embedded engine against Hugging Face's constrained beam search."""
    from genrec.bench.decode import bench_decode as measure
    from genrec.tables import format_bench

    result = measure(n_items=items, repeats=repeats)
    if as_json is not None:
        as_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    typer.echo(format_bench(result))

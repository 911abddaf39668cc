"""The command line: one subcommand a step, and the only place that prints.

Owns arguments, tables and exit codes. Knows no step's working; every command is one call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from typer.core import TyperGroup

import genrec
from genrec.cli_bench import bench_app
from genrec.cli_prompts import prompts_app
from genrec.cli_recommend import recommend
from genrec.cli_serve import add_key, serve
from genrec.cli_tokenize import tokenize_app
from genrec.cli_train import train
from genrec.errors import GenrecError, RecipeError
from genrec.recipe import split_values
from genrec.terminal import (
    DataDir,
    Engine,
    Force,
    ModelDir,
    OutDir,
    RayAddress,
    Values,
    err_console,
    out_console,
    run_step,
)

_STEP_ORDER = ("data", "embed", "tokenize", "prompts")
"""Commands that `--help` shows first; a group of commands would otherwise come last."""


class _StepsInOrder(TyperGroup):
    """The command line's top, its steps shown in the order in which they are run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, the first steps first."""
        names = super().list_commands(ctx)
        return [*_STEP_ORDER, *(name for name in names if name not in _STEP_ORDER)]


app = typer.Typer(
    name="genrec",
    cls=_StepsInOrder,
    help="LLM-based generative recommendation: from raw files to item ids that exist.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that ship with genrec.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel="Look around")
app.add_typer(bench_app, name="bench", rich_help_panel="Look around")
app.add_typer(tokenize_app, name="tokenize", rich_help_panel="The six steps")
app.add_typer(prompts_app, name="prompts", rich_help_panel="The six steps")

STEPS_PANEL, CHAIN_PANEL, LOOK_PANEL = "The six steps", "The whole way", "Look around"


def main() -> None:
    """Run the command line; a fault that genrec knows ends with one message and exit code 1."""
    # Threads that spin while they wait make a run up to 50 times slower beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except GenrecError as error:
        err_console.print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
    except BrokenPipeError:  # the reader of our answers went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        err_console.print("stopped; run the same command again to go on", highlight=False)
        sys.exit(130)


def _show_version(wanted: bool) -> None:
    if wanted:
        out_console.print(f"genrec {genrec.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def set_up(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """LLM-based generative recommendation: from raw files to item ids that exist."""
    level = logging.WARNING if quiet else logging.DEBUG if debug else logging.INFO
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=err_console, show_path=False, show_level=debug, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("genrec")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


@app.command(rich_help_panel=STEPS_PANEL)
def data(out: OutDir, values: Values = None, force: Force = False) -> None:
    """Step 1: raw files to items, interactions and a split.

    For example: `genrec data source=amazon2014 reviews=reviews.json.gz -o data`
    """
    run_step("data", values, {}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def embed(
    data: DataDir,
    out: OutDir,
    values: Values = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    force: Force = False,
) -> None:
    """Step 2: text of items (or, with subject=users, of users' reviews) to embeddings."""
    from genrec.tokenizers.cluster import find_engine

    run_step("embed", values, {"data": data}, out, force, engine=find_engine(engine, ray_address))


@app.command(rich_help_panel=STEPS_PANEL)
def base(data: DataDir, out: OutDir, values: Values = None, force: Force = False) -> None:
    """Before step 5, if wanted: a small decoder from scratch, pretrained on item text."""
    run_step("base", values, {"data": data}, out, force)


app.command(rich_help_panel=STEPS_PANEL)(train)


@app.command("eval", rich_help_panel=STEPS_PANEL)
def evaluate(
    data: DataDir, model: ModelDir, out: OutDir, values: Values = None, force: Force = False
) -> None:
    """Step 6: full-catalogue ranking against baselines, with intervals; metrics and a report."""
    run_step("eval", values, {"data": data, "train": model}, out, force)
    _show_metrics(out)


def _show_metrics(report: Path) -> None:
    from genrec.tables import build_metrics

    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    out_console.print(build_metrics(metrics), highlight=False)


app.command(rich_help_panel=STEPS_PANEL)(recommend)
app.command(rich_help_panel=STEPS_PANEL)(serve)
app.command("serve-key", rich_help_panel=STEPS_PANEL)(add_key)


@app.command(rich_help_panel=CHAIN_PANEL)
def run(
    out: OutDir,
    values: Values = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    force: Force = False,
) -> None:
    """All steps of a chain recipe; what is up to date is skipped, a killed run goes on.

    For example: `genrec run quickstart --out runs/quickstart train.epochs=2`
    """
    from genrec.pipeline import read_chain, run_chain

    name, overrides = split_values(values)
    if name is None:
        raise RecipeError(
            "which recipe? `genrec recipes list` shows the chains that ship with genrec"
        )
    made = run_chain(read_chain(name, overrides), out, until=until, force=force)
    if "eval" in made:
        _show_metrics(made["eval"].path)
        out_console.print(f"report: {made['eval'].path / 'report.html'}", highlight=False)


@app.command(rich_help_panel=CHAIN_PANEL)
def quickstart(out: OutDir = Path("runs/quickstart"), values: Values = None) -> None:
    """The whole way on the built-in catalogue, with no download, and what to do next."""
    from genrec.batch.samples import recommend_samples
    from genrec.pipeline import read_chain, run_chain
    from genrec.tables import build_answers, describe_results

    name, overrides = split_values(values)
    if name is not None:
        raise RecipeError(f"quickstart takes KEY=VALUE only; for {name!r} use `genrec run {name}`")
    run_chain(read_chain("quickstart", overrides), out)
    for history, titles, answers in recommend_samples(out):
        out_console.print(build_answers(history, titles, answers), highlight=False)
    _show_metrics(out / "report")
    out_console.print(describe_results(out), highlight=False, markup=False)


@recipes_app.command("list")
def list_shipped() -> None:
    """Every recipe that ships with genrec."""
    from genrec.recipe import list_recipes
    from genrec.tables import build_recipes

    out_console.print(build_recipes(list_recipes()))


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """A recipe's text, comments included."""
    from genrec.recipe import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_recipe(name: str, target: Path) -> None:
    """A recipe of your own to edit, copied from a shipped one."""
    from genrec.recipe import find_recipe

    if target.exists():
        raise RecipeError(f"{target} exists already; choose another name, or remove it first")
    source = find_recipe(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    out_console.print(f"{target}: copied from {source}", highlight=False)


@recipes_app.command("check")
def check_recipes(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Parse recipes and build their templates without running anything; all when none is named."""
    from genrec.pipeline import check_recipe
    from genrec.recipe import find_recipe, list_recipes

    paths = [find_recipe(name) for name in names or ()] or [r.path for r in list_recipes()]
    faults = 0
    for path in paths:
        try:
            kind = check_recipe(path)
        except GenrecError as error:
            faults += 1
            out_console.print(f"[red]fault[/] {path}\n  {escape(str(error))}", highlight=False)
        else:
            out_console.print(f"[green]ok[/]    {kind:10s} {path}", highlight=False)
    if faults:
        raise typer.Exit(1)


@app.command(rich_help_panel=LOOK_PANEL)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What is installed, which extras are missing, whether a GPU and vLLM are usable."""
    from genrec.doctor import check_installation
    from genrec.tables import build_checks

    checks = check_installation()
    if as_json:
        out_console.print_json(json.dumps([asdict(check) for check in checks]))
        return
    out_console.print(build_checks(checks))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)

"""The command line: one subcommand a step, and the only place that prints.

Owns arguments, tables and exit codes. Knows no step's working; every command is one call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

import genrec
from genrec.errors import DataError, GenrecError, RecipeError
from genrec.recipe import split_values

if TYPE_CHECKING:
    from genrec.types import History

app = typer.Typer(
    name="genrec",
    help="LLM-based generative recommendation: from raw files to item ids that exist.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that ship with genrec.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel="Look around")
bench_app = typer.Typer(help="The figures behind the speed claims.", no_args_is_help=True)
app.add_typer(bench_app, name="bench", rich_help_panel="Look around")

_out = Console()
_err = Console(stderr=True)

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
Force = Annotated[bool, typer.Option("--force", help="Run again even if nothing has changed.")]
STEPS_PANEL, CHAIN_PANEL, LOOK_PANEL = "The six steps", "The whole way", "Look around"


def main() -> None:
    """Run the command line; a fault that genrec knows ends with one message and exit code 1."""
    # Threads that spin while they wait make a run up to 50 times slower beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except GenrecError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our answers went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _err.print("stopped; run the same command again to go on", highlight=False)
        sys.exit(130)


def _show_version(wanted: bool) -> None:
    if wanted:
        _out.print(f"genrec {genrec.__version__}", highlight=False)
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
            console=_err, show_path=False, show_level=debug, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("genrec")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def _run_step(
    name: str, values: Sequence[str] | None, inputs: dict[str, Path], out: Path, force: bool
) -> None:
    """Run one step of the chain from the directories given, unless its output is up to date."""
    from genrec.artifact import find_current, load_artifact
    from genrec.pipeline import STEPS, read_step

    recipe = read_step(name, *split_values(values))
    step = next(step for step in STEPS if step.name == name)
    loaded = {role: load_artifact(path, step=role) for role, path in inputs.items()}
    if not force and find_current(out, step=name, recipe=recipe, inputs=loaded):
        _out.print(f"{out} is up to date; nothing to do (--force runs it again)", soft_wrap=True)
        return
    artifact = step.make(recipe, loaded, out)
    _out.print(f"{name}: {artifact.path} ({artifact.manifest.seconds:.1f} s)", highlight=False)


@app.command(rich_help_panel=STEPS_PANEL)
def data(out: OutDir, values: Values = None, force: Force = False) -> None:
    """Step 1: raw files to items, interactions and a split.

    For example: `genrec data source=amazon2014 reviews=reviews.json.gz -o data`
    """
    _run_step("data", values, {}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def embed(data: DataDir, out: OutDir, values: Values = None, force: Force = False) -> None:
    """Step 2: item text to embeddings."""
    _run_step("embed", values, {"data": data}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def tokenize(
    embeddings: EmbeddingsDir, out: OutDir, values: Values = None, force: Force = False
) -> None:
    """Step 3: embeddings to semantic IDs, one for each item and no two alike."""
    _run_step("tokenize", values, {"embed": embeddings}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def prompts(
    data: DataDir, tokenizer: TokenizerDir, out: OutDir, values: Values = None, force: Force = False
) -> None:
    """Step 4: interactions and semantic IDs to instruction data."""
    _run_step("prompts", values, {"data": data, "tokenize": tokenizer}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def base(data: DataDir, out: OutDir, values: Values = None, force: Force = False) -> None:
    """Before step 5, if wanted: a small decoder from scratch, pretrained on item text."""
    _run_step("base", values, {"data": data}, out, force)


@app.command(rich_help_panel=STEPS_PANEL)
def train(
    data: DataDir,
    tokenizer: TokenizerDir,
    instructions: Annotated[Path, typer.Option(help="Output of `genrec prompts`.")],
    out: OutDir,
    values: Values = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Output of `genrec base`; else the recipe's base= names a checkpoint."),
    ] = None,
    force: Force = False,
) -> None:
    """Step 5: a base model and instruction data to a recommender (LoRA, or method=full)."""
    inputs = {"data": data, "tokenize": tokenizer, "prompts": instructions}
    if base is not None:
        inputs["base"] = base
    _run_step("train", values, inputs, out, force)


@app.command("eval", rich_help_panel=STEPS_PANEL)
def evaluate(
    data: DataDir, model: ModelDir, out: OutDir, values: Values = None, force: Force = False
) -> None:
    """Step 6: full-catalogue ranking against baselines, with intervals; metrics and a report."""
    _run_step("eval", values, {"data": data, "train": model}, out, force)
    _show_metrics(out)


def _show_metrics(report: Path) -> None:
    from genrec.tables import build_metrics

    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    _out.print(build_metrics(metrics), highlight=False)


@app.command(rich_help_panel=STEPS_PANEL)
def recommend(
    model: ModelDir,
    item_ids: Annotated[
        list[str] | None, typer.Argument(help="One history: item ids, oldest first.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Users: .jsonl, .parquet, .csv; - is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the answers; else the screen.")
    ] = None,
    form: Annotated[
        Literal["table", "jsonl", "parquet"] | None,
        typer.Option("--format", help="Default: by the output's suffix; a table on the screen."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Answers a user.")] = 10,
    seen: Annotated[bool, typer.Option("--seen/--exclude-seen", help="Allow the history.")] = False,
    unknown: Annotated[
        Literal["error", "skip"], typer.Option(help="Ids that the catalogue lacks.")
    ] = "error",
    batch_size: Annotated[int, typer.Option(min=1, help="Users at once.")] = 64,
) -> None:
    """Step 6: the next items for one history, a file of users, or JSON lines on standard input.

    For example: `genrec recommend -m runs/quickstart/model B0012 B0471 -k 5`
    """
    from genrec.batch import Request, answer_histories, open_writer, write_answers
    from genrec.tables import build_answers

    histories = _read_requests(item_ids, input_file)
    form = form or _choose_form(output)
    _check_form(form, output)
    from genrec.recommender import Recommender

    recommender = Recommender.from_pretrained(model)
    request = Request(k, not seen, unknown)
    if form == "table":
        for history, titles, answers in answer_histories(recommender, histories, request):
            _out.print(build_answers(history, titles, answers), highlight=False)
        return
    with open_writer(form, output) as writer:
        write_answers(recommender, histories, request, writer, batch_size)
    if output is not None:
        _out.print(f"{len(histories):,} users: {output}", highlight=False)


def _read_requests(item_ids: list[str] | None, input_file: Path | None) -> list[History]:
    from genrec.batch import parse_histories, read_histories
    from genrec.types import History

    if item_ids and input_file:
        raise DataError("give item ids or --input, not both")
    if item_ids:
        return [History("", tuple(item_ids))]
    if input_file is None and sys.stdin.isatty():
        raise DataError(
            "no history was given; write item ids after the command, name a file with --input, "
            "or pipe JSON lines in"
        )
    if input_file is None or str(input_file) == "-":
        return parse_histories(sys.stdin, source="standard input")
    return read_histories(input_file)


def _choose_form(output: Path | None) -> Literal["table", "jsonl", "parquet"]:
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    return "parquet" if output.suffix == ".parquet" else "jsonl"


def _check_form(form: str, output: Path | None) -> None:
    if form == "parquet" and output is None:
        raise DataError("Parquet needs a file; name it with --output answers.parquet")
    if form == "table" and output is not None:
        raise DataError(
            f"a table goes to the screen, not to {output}; use --format jsonl or parquet"
        )


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
        _out.print(f"report: {made['eval'].path / 'report.html'}", highlight=False)


@app.command(rich_help_panel=CHAIN_PANEL)
def quickstart(out: OutDir = Path("runs/quickstart"), values: Values = None) -> None:
    """The whole way on the built-in catalogue, with no download, and what to do next."""
    from genrec.pipeline import read_chain, recommend_samples, run_chain
    from genrec.tables import build_answers, describe_results

    name, overrides = split_values(values)
    if name is not None:
        raise RecipeError(f"quickstart takes KEY=VALUE only; for {name!r} use `genrec run {name}`")
    run_chain(read_chain("quickstart", overrides), out)
    for history, titles, answers in recommend_samples(out):
        _out.print(build_answers(history, titles, answers), highlight=False)
    _show_metrics(out / "report")
    _out.print(describe_results(out), highlight=False, markup=False)


@recipes_app.command("list")
def list_shipped() -> None:
    """Every recipe that ships with genrec."""
    from genrec.recipe import list_recipes
    from genrec.tables import build_recipes

    _out.print(build_recipes(list_recipes()))


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
    _out.print(f"{target}: copied from {source}", highlight=False)


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
            _out.print(f"[red]fault[/] {path}\n  {escape(str(error))}", highlight=False)
        else:
            _out.print(f"[green]ok[/]    {kind:10s} {path}", highlight=False)
    if faults:
        raise typer.Exit(1)


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


@app.command(rich_help_panel=LOOK_PANEL)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What is installed, which extras are missing, whether a GPU and vLLM are usable."""
    from genrec.doctor import check_installation
    from genrec.tables import build_checks

    checks = check_installation()
    if as_json:
        _out.print_json(json.dumps([asdict(check) for check in checks]))
        return
    _out.print(build_checks(checks))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)

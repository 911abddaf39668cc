"""`genrec prompts`: instruction data, what a recipe would make of it, and faults of wording.

Owns arguments and how plans and findings look. `genrec prompts RECIPE ...` is short for
`genrec prompts make RECIPE ...`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from genrec.recipe import split_values
from genrec.terminal import (
    DataDir,
    Force,
    GroupWithDefault,
    OutDir,
    TokenizerDir,
    Values,
    out_console,
    run_step,
)

if TYPE_CHECKING:
    from genrec.prompts.lint import Finding

_SHOWN_CHARACTERS = 400
UsersDir = Annotated[
    Path | None,
    typer.Option("--users", help="Output of `genrec tokenize ulmrec-users`: users by id."),
]


class _MakeByDefault(GroupWithDefault):
    """Without a command, `make`."""

    default = "make"


prompts_app = typer.Typer(
    cls=_MakeByDefault,
    help="Step 4: interactions and semantic IDs to instruction data.",
    epilog="`genrec prompts RECIPE ...` is short for `genrec prompts make RECIPE ...`.",
    no_args_is_help=True,
)


@prompts_app.command("make")
def make(
    data: DataDir,
    tokenizer: TokenizerDir,
    out: OutDir,
    values: Values = None,
    users: UsersDir = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that write, with the same result; all cores where rows are many."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write instruction rows, and look for leaks of what is held out.

    For example: `genrec prompts standard --data data --tokenizer tokenizer -o instructions`
    """
    inputs = {"data": data, "tokenize": tokenizer} | ({"users": users} if users else {})
    run_step("prompts", values, inputs, out, force, workers=workers)


@prompts_app.command("plan")
def plan(
    data: DataDir,
    tokenizer: TokenizerDir,
    values: Values = None,
    users: UsersDir = None,
    lm: Annotated[
        str | None,
        typer.Option("--lm", help="A language model or its tokenizer: count its tokens."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all of it here, for machines.")
    ] = None,
) -> None:
    """Show what a recipe would write: rows, tokens, templates that are off and why, and examples.

    For example: `genrec prompts plan standard --data data --tokenizer tokenizer --lm base`
    """
    from genrec.manifest import write_json
    from genrec.pipeline import read_step
    from genrec.prompts.preview import preview_rows
    from genrec.prompts.recipe import PromptsRecipe

    recipe = read_step("prompts", *split_values(values))
    assert isinstance(recipe, PromptsRecipe), "it is the recipe of that step"
    found = preview_rows(recipe, data, tokenizer, users=users, base=lm)
    for part in build_plan(found):
        out_console.print(part, highlight=False)
    if json_file is not None:
        write_json(json_file, found)


@prompts_app.command("lint")
def lint(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|NAME...", help="Template files; all shipped when none."),
    ] = None,
) -> None:
    """Look for faults of wording: answers in the question, repeats, imbalance, long rows.

    For example: `genrec prompts lint my-templates.yaml`
    """
    from genrec.prompts.lint import lint_templates

    found = lint_templates(files or ())
    for finding in found:
        out_console.print(_describe_finding(finding), highlight=False, soft_wrap=True)
    faults = sum(finding.level == "fault" for finding in found)
    out_console.print(f"{faults} faults, {len(found) - faults} warnings", highlight=False)
    if faults:
        raise typer.Exit(1)


def _describe_finding(finding: Finding) -> str:
    colour = "red" if finding.level == "fault" else "yellow"
    name = f" {finding.template}" if finding.template else ""
    where = escape(f"{Path(finding.file).name}{name}: {finding.message}")
    return f"[{colour}]{finding.level}[/] {where}"


def build_plan(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Tables and texts that show a plan, as `preview_rows` gives it."""
    passes = found["rows_by_pass"]
    drawn = f" in {len(passes)} passes" if len(passes) > 1 else ""
    yield Text(f"{found['rows']:,} training rows{drawn}, {found['valid_rows']:,} validation rows")
    counted = found["totals"]["tokens"] is not None
    yield _build_totals("task", found["tasks"], found["totals"], counted)
    yield _build_totals("family", found["families"], None, counted)
    yield _build_templates([row for row in found["templates"] if row["rows"]], counted)
    off = [row for row in found["templates"] if not row["rows"]]
    if off:
        yield _build_off(off)
    for name, share in found["dominating"].items():
        yield Text(f"{name} writes {share:.0%} of its task's rows", style="yellow")
    yield _build_longest(found["longest"])
    for family, rows in found["examples"].items():
        yield _show_examples(family, rows)


def _build_totals(
    title: str, groups: dict[str, Any], totals: dict[str, Any] | None, counted: bool
) -> Table:
    table = Table(title, "rows", "tokens" if counted else "characters", "of them semantic IDs'")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = dict(sorted(groups.items())) | ({"all": totals} if totals else {})
    for name, group in rows.items():
        size = group["tokens" if counted else "characters"]
        table.add_row(
            escape(name), f"{group['rows']:,}", f"{size:,}", f"{group['sid_tokens']:,} tokens"
        )
    return table


def _build_templates(templates: list[dict[str, Any]], counted: bool) -> Table:
    size = "tokens" if counted else "characters"
    table = Table("template", "task", "rows", f"{size} a row", "longest")
    _show_whole(table)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in templates:
        table.add_row(
            row["template"],
            row["task"],
            f"{row['rows']:,}",
            f"{row[size]:,.1f}",
            f"{row['longest']:,}",
        )
    return table


def _show_whole(table: Table) -> None:
    """Break long names instead of cutting them: the recipe's `only` takes whole ids."""
    for column in table.columns:
        column.overflow = "fold"


def _build_off(templates: list[dict[str, Any]]) -> Table:
    table = Table("template without rows", "task", "why")
    _show_whole(table)
    for row in templates:
        table.add_row(row["template"], row["task"], escape(row["off"]))
    return table


def _build_longest(rows: list[dict[str, Any]]) -> Table:
    table = Table("longest rows of the sample", "size", "prompt")
    _show_whole(table)
    for row in rows:
        size = (
            f"{row['characters']:,} characters"
            if row["tokens"] is None
            else (f"{row['tokens']:,} tokens")
        )
        table.add_row(row["template"], size, escape(_shorten(row["prompt"])))
    return table


def _show_examples(family: str, rows: list[dict[str, str]]) -> Text:
    text = Text(f"{family}, for example\n", style="bold")
    for row in rows:
        text.append(f"  {row['template']} ({row['task']})\n", style="dim")
        text.append(
            f"    {_shorten(row['prompt'])}\n    -> {_shorten(row['target'])}\n", "not bold"
        )
    return text


def _shorten(text: str) -> str:
    cut = len(text) > _SHOWN_CHARACTERS
    return f"{text[:_SHOWN_CHARACTERS]} ..." if cut else text

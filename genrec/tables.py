"""What the command line shows: tables and lists made from results.

Owns their look. Returns renderable values and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from genrec.doctor import Check
from genrec.recipe import RecipeFile
from genrec.types import History, Recommendation

_SHOWN_ITEMS = 5
_COLOURS = {"ok": "green", "missing": "yellow", "broken": "red", "note": "cyan"}


def build_metrics(metrics: dict[str, Any]) -> Group:
    """The table of a `metrics.json`: one row a system, each metric with its interval."""
    systems: dict[str, dict[str, dict[str, float]]] = metrics["systems"]
    of = f"{metrics['dataset']}, {metrics['split']} split, {metrics['users']:,} users"
    table = Table(title=f"{of}: mean [95% interval]", title_justify="left")
    table.add_column("system", no_wrap=True)
    for name in next(iter(systems.values())):
        table.add_column(name, justify="right")
    for system, values in systems.items():
        cells = [
            f"{v['mean']:.4f}\n[dim]{v['low']:.4f}–{v['high']:.4f}[/]" for v in values.values()
        ]
        table.add_row(escape(system), *cells)
    return Group(
        table, Text(f"answers that are items of the catalogue: {metrics['valid_item_rate']:.2%}")
    )


def build_changes(changes: Mapping[str, Sequence[str]], title: str) -> Group:
    """What differs between two tokenizers: how many items each change has, and the first ones."""
    table = Table("change", "items", "the first")
    table.columns[1].justify = "right"
    for name, items in changes.items():
        more = ", ..." if len(items) > _SHOWN_ITEMS else ""
        table.add_row(name, f"{len(items):,}", escape(", ".join(items[:_SHOWN_ITEMS])) + more)
    return Group(Text(title), table)  # a table's own title breaks where the table ends


def build_answers(
    history: History, titles: Sequence[str], answers: Sequence[Recommendation]
) -> Group:
    """One user's history and the recommendations for it."""
    width = max((len(item) for item in history.item_ids), default=0)
    lines = [f"user {history.user_id}"] if history.user_id else []
    lines.append("history, oldest first:")
    lines += [f"  {i:{width}}  {t}" for i, t in zip(history.item_ids, titles, strict=True)]
    table = Table("rank", "item", "title", "score", "semantic ID")
    for answer in answers:
        table.add_row(
            str(answer.rank),
            escape(answer.item_id),
            escape(answer.title),
            f"{answer.score:.3f}",
            escape(answer.sid),
        )
    return Group(Text("\n".join(lines)), table)


def build_vocabularies(report: dict[str, Any]) -> Group:
    """The side-by-side table of a vocabulary `report.json`: one row a measure, the best marked."""
    names = [row["name"] for row in report["vocabularies"]]
    table = Table(title="↑ higher is better, ↓ lower is better, * best", title_justify="left")
    table.add_column("measure")
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    for row in report["measures"]:
        cells = [
            f"[bold green]{escape(text)} *[/]" if name in row["best"] else escape(text)
            for name, text in ((name, row["texts"].get(name, "–")) for name in names)
        ]
        table.add_row(row["title"] + arrows[row["better"]], *cells)
    reasons = [
        f"{vocabulary['name']}: {row['measure']} not measured: {row['reason']}"
        for vocabulary in report["vocabularies"]
        for row in vocabulary["missing"]
    ]
    return Group(table, Text("\n".join(reasons))) if reasons else Group(table)


def build_recipes(recipes: Sequence[RecipeFile]) -> Table:
    """The shipped recipes, one a row."""
    table = Table("kind", "name", "about")
    for recipe in recipes:
        table.add_row(recipe.kind, recipe.name, escape(recipe.about))
    return table


def build_checks(checks: Sequence[Check]) -> Table:
    """The doctor's findings, one a row."""
    table = Table("what", "state", "detail", "way out")
    for check in checks:
        state = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), state, escape(check.detail), escape(check.way_out))
    return table


def format_bench(result: dict[str, Any]) -> str:
    """The rows of a benchmark as a Markdown table, under the machine's name."""
    lines = [
        f"machine: {result['machine']}",
        "",
        "| figure | value | unit | target | met | against |",
    ]
    lines.append("|---|--:|---|--:|---|---|")
    for row in result["rows"]:
        met = {None: "", True: "yes", False: "no"}[row["met"]]
        target = "" if row["target"] is None else f"{row['target']:g}"
        cells = [row["name"], f"{row['value']:.3g}", row["unit"], target, met]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, row["against"]]) + " |")
    return "\n".join(lines)


def describe_results(run: Path) -> str:
    """Where a quickstart run put everything, and the next command for the user's own data."""
    return "\n".join(
        [
            f"Everything is in {run}:",
            "  data/         items, interactions and their split",
            "  tokenizer/    semantic IDs of every item, with a quality summary",
            "  instructions/ prompts and targets",
            "  base/         the small base LM, made and pretrained here",
            "  model/        the tuned model: a plain Hugging Face checkpoint, adapter, item index",
            "  report/       report.html (open it in a browser), metrics.json, per-user values",
            "",
            "Ask the model:",
            f"  genrec recommend -m {run / 'model'} -k 5 ITEM_ID [ITEM_ID ...]",
            "Your own data (see `genrec recipes show quickstart` for every value):",
            "  genrec recipes copy quickstart mine.yaml",
            "  genrec run mine.yaml --out runs/mine data.source=table \\",
            "      data.interactions=interactions.csv data.items=items.csv",
        ]
    )

"""`genrec prompts`: the group's commands, their tables and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from genrec import cli
from genrec.artifact import load_artifact

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.mark.slow
def test_make_is_the_default_command(tiny_run: Path, tmp_path: Path) -> None:
    inputs = ["--data", str(tiny_run / "data"), "--tokenizer", str(tiny_run / "tokenizer")]
    for name, words in (("short", []), ("long", ["make"])):
        done = runner.invoke(
            cli.app,
            ["prompts", *words, "small-decoder", *inputs, "-o", str(tmp_path / name),
             "--workers", "1", "passes=2"],
        )  # fmt: skip
        assert done.exit_code == 0, done.exception
        assert load_artifact(tmp_path / name).manifest.recipe["passes"] == 2
    again = runner.invoke(cli.app, ["prompts", "small-decoder", *inputs, "passes=2",
                                    "-o", str(tmp_path / "short")])  # fmt: skip
    assert "is up to date" in again.output


@pytest.mark.slow
def test_plan_shows_what_would_be_written(tiny_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    done = runner.invoke(
        cli.app,
        ["prompts", "plan", "standard", "--data", str(tiny_run / "data"),
         "--tokenizer", str(tiny_run / "tokenizer"), "--lm", str(tiny_run / "base"),
         "--json", str(target), "passes=2", "max_text_characters=500"],
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    found = json.loads(target.read_text())
    assert f"{found['rows']:,} training rows in 2 passes" in done.output
    assert found["totals"]["tokens"] > 0
    for words in ("tokens a row", "template without rows", "unseen: kept back", "longest rows of",
                  "sequential, for example", "items, for example"):  # fmt: skip
        assert words in done.output


def test_a_plan_of_few_rows_in_characters() -> None:
    from genrec.cli_prompts import build_plan

    sizes = {"rows": 4, "characters": 9, "sid_tokens": 3, "tokens": None}
    row = {"template": "t", "task": "s", "rows": 4, "characters": 2.2, "longest": 3, "off": ""}
    found = {
        "rows": 4, "rows_by_pass": [4], "valid_rows": 1, "tasks": {"s": sizes},
        "families": {"f": sizes}, "totals": sizes, "templates": [row],
        "dominating": {"t": 1.0},
        "longest": [{"template": "t", "characters": 900, "tokens": None, "prompt": "[x]" * 300,
                     "target": "y"}],
        "examples": {"f": [{"template": "t", "task": "s", "prompt": "p", "target": "[red]q"}]},
    }  # fmt: skip
    from rich.console import Console

    console = Console(width=200, record=True)
    for part in build_plan(found):
        console.print(part)
    text = console.export_text()
    assert "4 training rows, 1 validation rows" in text and "characters a row" in text
    assert "t writes 100% of its task's rows" in text and "900 characters" in text
    assert "-> [red]q" in text and "template without rows" not in text and " ..." in text


def test_a_narrow_terminal_breaks_template_ids_and_cuts_none() -> None:
    from rich.console import Console

    from genrec.cli_prompts import _build_templates

    name = "p5-rate-and-explain-with-a-long-name"
    row = {"template": name, "task": "rating-explanation", "rows": 1, "characters": 1.0,
           "longest": 1}  # fmt: skip
    console = Console(width=60, record=True)
    console.print(_build_templates([row], counted=False))
    lines = console.export_text().splitlines()
    cells = [line.split("\u2502")[1].strip() for line in lines if line.startswith("\u2502")]
    assert "".join(cells) == name


def test_lint_ends_with_1_on_faults_only(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    template = {"id": "mine", "task": "item-to-sid", "source": "x", "fields": ["title", "sid"],
                "input": "A wording of my own: {{ title }}", "target": "{{ sid }}"}  # fmt: skip

    def lint(**values: object) -> tuple[int, str]:
        content = {"kind": "templates", "about": "x", "templates": [template | values]}
        file.write_text(yaml.safe_dump(content))
        done = runner.invoke(cli.app, ["prompts", "lint", str(file)])
        return done.exit_code, done.output

    code, output = lint()
    assert code == 0 and "0 faults, 2 warnings" in output
    assert "warning mine.yaml: no template is marked unseen" in output
    code, output = lint(input="A wording [of] my own: {{ titel }}", fields=["titel", "sid"])
    assert code == 1 and "1 faults, 0 warnings" in output
    assert "fault mine.yaml mine: input: unknown field 'titel'; did you mean 'title'?" in output


def test_the_shipped_families_pass() -> None:
    done = runner.invoke(cli.app, ["prompts", "lint"])
    assert done.exit_code == 0, done.output


def test_help_names_the_commands() -> None:
    shown = runner.invoke(cli.app, ["prompts", "--help"]).output
    for command in ("make", "plan", "lint"):
        assert command in shown


@pytest.mark.slow
def test_bench_prompts_writes_rows(tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    done = runner.invoke(
        cli.app,
        ["bench", "prompts", "--users", "50", "--items", "40", "--repeats", "1",
         "--json", str(target)],
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 6 and all(row["value"] > 0 for row in rows)
    assert [row["target"] for row in rows].count(50_000) == 2
    assert rows[0]["against"].endswith("by str.format and JSON lines, without spans or checks")

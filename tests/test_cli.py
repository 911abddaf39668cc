"""The command line: arguments, messages, exit codes; each step has tests of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genrec import cli, cli_recommend, doctor
from genrec.doctor import Check
from genrec.errors import DataError, RecipeError
from genrec.types import History

runner = CliRunner()


def run_main(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from genrec.cli import main; main()", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_step() -> None:
    shown = runner.invoke(cli.app, ["--help"]).output
    for command in ("data", "embed", "tokenize", "prompts", "base", "train", "recommend", "eval",
                    "run", "quickstart", "recipes", "doctor"):  # fmt: skip
        assert command in shown


def test_version() -> None:
    assert runner.invoke(cli.app, ["--version"]).output.startswith("genrec ")


def test_recipes_are_listed_shown_copied_and_checked(tmp_path: Path) -> None:
    listed = runner.invoke(cli.app, ["recipes", "list"])
    assert "quickstart" in listed.output
    shown = runner.invoke(cli.app, ["recipes", "show", "quickstart"])
    assert shown.output.startswith("kind: chain")
    target = tmp_path / "own" / "mine.yaml"
    assert runner.invoke(cli.app, ["recipes", "copy", "quickstart", str(target)]).exit_code == 0
    assert target.read_text() == shown.output
    again = runner.invoke(cli.app, ["recipes", "copy", "quickstart", str(target)])
    assert isinstance(again.exception, RecipeError)
    assert "exists already" in str(again.exception)
    checked = runner.invoke(cli.app, ["recipes", "check", str(target)])
    assert checked.exit_code == 0
    assert "chain" in checked.output


def test_faulty_recipes_fail_the_check_and_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: train\nepoch: 3\n")
    checked = runner.invoke(cli.app, ["recipes", "check", str(path)])
    assert checked.exit_code == 1
    assert "did you mean 'epochs'" in checked.output


def test_every_shipped_recipe_passes_the_check() -> None:
    checked = runner.invoke(cli.app, ["recipes", "check"])
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("ok") >= 8


def test_a_known_fault_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    done = run_main("run", "quickstrat", "--out", str(tmp_path / "x"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown")
    assert "did you mean 'quickstart'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_an_unknown_key_is_explained_before_any_work(tmp_path: Path) -> None:
    done = run_main("run", "quickstart", "train.epoch=2", "-o", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "train.epoch: unknown key; did you mean 'epochs'?" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-o", "x"], "which recipe"),
        (["run", "a", "b", "-o", "x"], "one recipe at a time, but 2 were given: a, b"),
        (["quickstart", "other"], "quickstart takes KEY=VALUE only"),
        (["recommend", "-m", "x", "i1", "--input", "u.jsonl"], "item ids or --input, not both"),
        (["recommend", "-m", "x", "--user", "u1", "--input", "u.jsonl"], "in its column user_id"),
        (["recommend", "-m", "x", "i1", "--format", "parquet"], "Parquet needs a file"),
        (["recommend", "-m", "x", "i1", "--format", "table", "-o", "y"], "goes to the screen"),
        (["recommend", "-m", "nowhere", "i1"], "train artefact nowhere does not exist"),
        (["recommend", "-m", "nowhere", "--input", "u.txt"], "file of users u.txt does not exist"),
        (["embed", "--data", "nowhere", "-o", "x"], "data artefact nowhere does not exist"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], message: str) -> None:
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code != 0
    assert message in str(done.exception)


def test_no_history_at_a_terminal_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(DataError, match="no history was given"):
        cli_recommend._check_arguments(None, None, "")


def test_histories_come_from_arguments_or_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli_recommend._read_requests(["a", "b"], None, "u")[0] == History("u", ("a", "b"))
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"history": ["c"]}\n'))
    assert cli_recommend._read_requests(None, Path("-"), "")[0].item_ids == ("c",)


def test_the_form_follows_the_output() -> None:
    assert cli_recommend._choose_form(Path("a.parquet")) == "parquet"
    assert cli_recommend._choose_form(Path("a.jsonl")) == "jsonl"
    assert cli_recommend._choose_form(None) == "jsonl"


def test_the_doctor_reports_and_fails_on_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("GPU", "note", "none usable"), Check("vLLM", "broken", "no", "reinstall [it]")]
    monkeypatch.setattr(doctor, "check_installation", lambda: found)
    done = runner.invoke(cli.app, ["doctor"])
    assert done.exit_code == 1
    assert "reinstall [it]" in done.output
    as_json = runner.invoke(cli.app, ["doctor", "--json"])
    assert json.loads(as_json.output)[1]["state"] == "broken"


def test_one_step_runs_once(tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ["data", "source=synthetic", "n_items=60", "n_users=30", "--out", str(out)]
    first = runner.invoke(cli.app, command)
    assert first.exit_code == 0, first.exception
    assert "data:" in first.output
    assert "up to date; nothing to do" in runner.invoke(cli.app, command).output
    assert "up to date" not in runner.invoke(cli.app, [*command, "--force"]).output

"""`genrec train` as typed: what it would take, and bases that it cannot take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from genrec import cli
from genrec.errors import ArtifactError, ModelError, RecipeError
from tests.train.made_inputs import Inputs

Bases = Callable[[str], Path]


def run_train(inputs: Inputs, out: Path, *more: str) -> Result:
    folders = ["--data", inputs.data, "--tokenizer", inputs.tokenizer]
    folders += ["--instructions", inputs.instructions, "--out", out]
    return CliRunner().invoke(cli.app, ["train", "tiny", *map(str, folders), *more])


def test_an_estimate_needs_no_weights_and_writes_nothing(
    bases: Bases, inputs: Inputs, tmp_path: Path
) -> None:
    bare, out = tmp_path / "bare", tmp_path / "model"
    shutil.copytree(bases("qwen3"), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    done = run_train(inputs, out, "--estimate", "--base", str(bare))
    assert done.exit_code == 0, done.exception
    for name in ("parameters", "of them token rows", "memory on each process", "updates", "H100"):
        assert name in done.output
    assert not out.exists()
    done = run_train(inputs, out, "--estimate", "--base", str(bare), "method=qlora")
    assert "not tried: too large, or qlora" in done.output


def test_an_estimate_refuses_what_the_run_would(
    bases: Bases, inputs: Inputs, tmp_path: Path
) -> None:
    base = ("--estimate", "--base", str(bases("qwen3")))
    missing = Inputs(inputs.data, tmp_path / "none", inputs.instructions)
    done = run_train(missing, tmp_path / "model", *base)
    assert isinstance(done.exception, ArtifactError)
    assert "does not exist" in str(done.exception)
    swapped = Inputs(inputs.data, inputs.instructions, inputs.tokenizer)
    assert isinstance(run_train(swapped, tmp_path / "model", *base).exception, ArtifactError)
    done = run_train(inputs, tmp_path / "model", *base, "token_rows=frozen")
    assert isinstance(done.exception, ModelError)
    assert "needs a base that has learnt the semantic-ID tokens" in str(done.exception)
    done = run_train(inputs, tmp_path / "model", *base, "soft_user_tokens=2")
    assert isinstance(done.exception, RecipeError)


def test_a_checkpoint_that_is_no_artefact_is_given_as_a_value(
    bases: Bases, inputs: Inputs, tmp_path: Path
) -> None:
    done = run_train(inputs, tmp_path / "model", "--base", str(bases("qwen3")))
    assert isinstance(done.exception, RecipeError)
    assert f"write base={bases('qwen3')}" in str(done.exception)
    assert not (tmp_path / "model").exists()

"""The benchmarks run, and their rows have the shape that machines read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genrec import cli
from genrec.bench import decode


def test_decode_writes_rows_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(decode, "WIDTH", 3)
    monkeypatch.setattr(decode, "TEXT_VOCABULARY", 64)
    target = tmp_path / "rows.json"
    done = CliRunner().invoke(
        cli.app,
        ["bench", "decode", "--json", str(target), "--items", "500", "--repeats", "1"],
    )
    assert done.exit_code == 0, done.exception
    assert done.output.count("| engine") == 4
    written = json.loads(target.read_text())
    assert written["schema"] == 1
    assert {"name", "value", "unit", "target", "met", "against"} == set(written["rows"][0])
    assert all(row["value"] > 0 for row in written["rows"])

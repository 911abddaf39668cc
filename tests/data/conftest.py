"""Tiny files of each format, written by the tests themselves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from genrec.artifact import Artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data

Write = Callable[..., Path]
Make = Callable[..., Dataset]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Write:
    def write(name: str, records: Iterable[Mapping[str, object] | str]) -> Path:
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        data = ("\n".join(lines) + "\n").encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def write_text(tmp_path: Path) -> Write:
    def write(name: str, text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the data step with these recipe values and open what it made."""

    def run(**values: object) -> Dataset:
        artifact: Artifact = make_data(DataRecipe(**values), tmp_path / "out")
        return load_dataset(artifact.path)

    return run

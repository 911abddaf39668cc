"""Fixtures that every test folder may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def find_real_data() -> Callable[[str], Path]:
    """A function from a data set's name to its folder; skips the test where it is absent."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("GENREC_DATA", REPOSITORY.parent / "shared" / "data"))
        folder = root / name
        if not (folder / "interactions.parquet").is_file():
            pytest.skip(f"real data set {name} is not in {root} (set GENREC_DATA)")
        return folder

    return find

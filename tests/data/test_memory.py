"""A million interactions in a fifth of the memory that five million may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROWS = 1_000_000
LIMIT_MIB = 4096 / 5 + 150  # the interpreter and libraries take as much for any size
SCRIPT = """
import sys
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.memory import read_peak
path, out = sys.argv[1:]
recipe = DataRecipe(source="table", interactions=path, k_core_users=5, k_core_items=5)
make_data(recipe, out)
# Of this process alone: getrusage() would count what the test process held when it started this.
sys.stdout.write(str(read_peak() // 2**20))
"""


@pytest.mark.slow
def test_a_million_interactions_stay_within_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "log.csv"
    pl.DataFrame(
        {
            "user_id": rng.integers(0, ROWS // 8, ROWS),
            "item_id": rng.integers(0, ROWS // 25, ROWS),
            "timestamp": rng.integers(1_200_000_000, 1_500_000_000, ROWS),
        }
    ).with_columns(pl.format("A{}XQ", "user_id").alias("user_id")).write_csv(path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < LIMIT_MIB

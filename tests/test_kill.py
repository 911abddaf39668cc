"""A run that is killed leaves nothing that looks finished, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [
    sys.executable, "-c", "from genrec.cli import main; main()",
    "run", "quickstart", "data.n_items=80", "data.n_users=120", "tokenize.quantizer=rqkmeans",
    "tokenize.codebook_sizes=[8, 8, 8]", "base.epochs=0.2", "base.hidden_size=32", "base.layers=1",
    "train.epochs=20", "train.eval_every=5", "eval.metrics=[HR@5]", "eval.n_bootstrap=100",
    "eval.n_permutations=100",
]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stderr is not None
    for line in first.stderr:
        if "validation loss" in line:  # each validation leaves a checkpoint
            time.sleep(0.5)
            first.send_signal(signal.SIGKILL)
            break
    first.stderr.close()
    assert first.wait() == -signal.SIGKILL
    assert (out / "model" / ".partial.json").exists()
    assert not (out / "model" / "manifest.json").exists()
    before = (out / "instructions" / "manifest.json").read_bytes()

    second = subprocess.run(
        [*COMMAND, "--out", str(out)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stderr.count("up to date, skipped") == 5
    assert "continuing the unfinished run" in second.stderr
    assert (out / "instructions" / "manifest.json").read_bytes() == before
    assert json.loads((out / "report" / "metrics.json").read_text())["valid_item_rate"] == 1.0

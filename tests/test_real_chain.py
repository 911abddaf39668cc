"""The whole chain on a sample of real data: valid answers, and better than popularity."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.pipeline import read_chain, run_chain


@pytest.mark.slow
def test_a_sample_of_beauty_beats_popularity(
    find_real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENREC_DATA", str(find_real_data("amazon14-beauty").parent))
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "PASSIVE")
    overrides = [
        "data.users=4000", "data.k_core_users=0", "data.k_core_items=0",
        "tokenize.quantizer=rqkmeans", "tokenize.codebook_sizes=[64, 64, 64]",
        "train.epochs=3", "train.max_minutes=3", "eval.max_users=1500",
        "eval.systems=[popularity]",
    ]  # fmt: skip
    run_chain(read_chain("amazon14-beauty", overrides), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert metrics["valid_item_rate"] == 1.0
    assert metrics["users"] == 1500
    model, popularity = (metrics["systems"][name]["HR@10"] for name in ("genrec", "popularity"))
    assert model["mean"] > popularity["mean"]

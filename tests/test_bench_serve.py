"""The server's benchmark, short: that it runs, and what it says of a server that does not."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from genrec.bench import serve as module
from genrec.bench.load import LoadResult
from genrec.bench.serve import LOADS, ServeBench, bench_serve, run_server
from genrec.errors import ModelError


def make_result(seconds: list[float], **statuses: int) -> LoadResult:
    counts = Counter({int(name[1:]): n for name, n in statuses.items()})
    return LoadResult(counts, seconds, 0.002, 2.0)


@pytest.mark.slow
def test_a_quick_run_says_how_the_server_answers(tiny_run: Path) -> None:
    result = bench_serve(ServeBench(tiny_run / "model", seconds=2.0, clients=4, quick=True))
    rows = {row["name"]: row for row in result["rows"]}
    assert json.loads(json.dumps(result)) == result
    assert rows["capacity, 4 clients"]["value"] > 0
    for load in LOADS:
        strange = [name for name in rows if name.startswith(f"{load:g}x: other than")]
        assert rows[strange[0]]["value"] == 0, strange
        assert rows[f"{load:g}x: p50"]["value"] <= rows[f"{load:g}x: p90"]["value"]
    assert rows["memory after the first load"]["value"] > 50
    assert all(row["target"] is None for row in result["rows"]), "a quick run has no targets"


@pytest.mark.slow
def test_a_server_that_does_not_start_leaves_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"(?s)did not get ready; its last words:.*does not exist"),
        run_server(tmp_path / "nowhere", [], tmp_path / "log"),
    ):
        pytest.fail("it started")


def test_a_load_is_held_to_its_targets() -> None:
    options = ServeBench()
    calm = make_result([0.01] * 100, _200=100)
    busy = make_result([0.01] * 90 + [0.05] * 10, _200=100, _429=99, _504=1)
    rows = {row.name: row for row in module._describe_load("2x", busy, calm, options)}
    against = [row for row in module._describe_load("2x", busy, calm, options) if row.against]
    assert [(row.value, row.target, row.met) for row in against] == [(pytest.approx(5), 2, False)]
    (strange,) = (row for name, row in rows.items() if "other than" in name)
    assert (strange.value, strange.met) == (1, False)
    assert re.search(r"200: 100, 429: 99, 504: 1", strange.name)
    assert rows["2x: refused"].value == pytest.approx(50)
    assert rows["2x: answered"].value == pytest.approx(50)


def test_memory_may_grow_by_a_tenth_after_the_first_load() -> None:
    _, flat = module._describe_memory([100, 200, 210], ServeBench())
    assert flat.met is True and flat.value == pytest.approx(1.05)
    assert module._describe_memory([100, 200, 250], ServeBench())[1].met is False
    assert module._describe_memory([100, 200, 250], ServeBench(quick=True))[1].met is None


def test_without_a_model_a_small_one_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(module.subprocess, "run", lambda words, **_: asked.append(words))
    assert module._train_model(tmp_path) == tmp_path / "run" / "model"
    assert asked[0][3:6] == ["--quiet", "run", "quickstart"] and "train.max_steps=20" in asked[0]


def test_requests_hold_histories_of_the_model(tiny_run: Path) -> None:
    bodies = [json.loads(body) for body in module._write_bodies(tiny_run / "model", 3, 20)]
    known = set(module.pl.read_parquet(tiny_run / "model" / "item_index.parquet")["item_id"])
    assert len(bodies) == 20
    assert all(body["k"] == 3 and set(body["history"]) <= known for body in bodies)
    assert len({len(body["history"]) for body in bodies}) > 5

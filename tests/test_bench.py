"""The benchmarks run, and their rows have the shape that machines read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from genrec import cli
from genrec.bench import tokenize_device, tokenize_fit, tokenize_scale
from genrec.bench.made_vectors import make_vectors, read_real_vectors
from genrec.bench.rows import build_row, report_rows, time_rivals
from genrec.bench.tokenize import SECTIONS, bench_tokenize
from genrec.bench.tokenize_options import TokenizeBench
from genrec.errors import MissingExtraError, RecipeError
from genrec.tables import format_bench

QUICK = ("codebook_sizes=[16, 16, 16]", "rqvae.hidden_sizes=[8]", "rqvae.max_epochs=3")


def run_bench(*arguments: str) -> Any:
    done = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert done.exit_code == 0, done.exception
    return done


def name_values(rows: list[Any]) -> dict[tuple[str, str], float]:
    return {(row.name.rpartition(": ")[2], row.unit): row.value for row in rows}


def test_a_target_is_met_from_one_side() -> None:
    assert build_row("x", 3, "seconds", most=3).met
    assert not build_row("x", 3.1, "seconds", most=3).met
    assert build_row("x", 3, "times", least=3).met
    assert not build_row("x", 2, "times", least=3).met
    assert build_row("x", 0, "items", most=0).met
    assert build_row("x", 3, "seconds").met is None


def test_tables_show_targets_of_zero_and_none() -> None:
    rows = [build_row("a", 0, "items", most=0), build_row("b", 2.5, "seconds")]
    table = format_bench(report_rows(rows)).splitlines()
    assert table[-2] == "| a | 0 | items | 0 | yes |  |"
    assert table[-1] == "| b | 2.5 | seconds |  |  |  |"


@pytest.mark.parametrize("warm_up", [True, False])
def test_rivals_take_turns(warm_up: bool) -> None:
    calls: list[str] = []
    rivals = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = time_rivals(rivals, 2, warm_up=warm_up)
    assert calls == ["a", "b"] * (3 if warm_up else 2)
    assert [len(taken) for taken in seconds.values()] == [2, 2]


def test_vectors_are_made_where_the_real_set_is_not(tmp_path: Path) -> None:
    name, vectors = read_real_vectors(tmp_path, 300)
    assert name == "made-up set (300 items)"
    assert vectors.shape == (300, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors, read_real_vectors(None, 300)[1])


def test_the_real_set_is_read_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "amazon14-beauty"
    folder.mkdir()
    titles = [f"word{row % 40} word{row % 7} soap" for row in range(400)]
    columns = {"title": titles, "brand": [None] * 400, "categories": ["Beauty"] * 400}
    schema = {name: pl.String for name in columns}
    pl.DataFrame(columns, schema=schema).write_parquet(folder / "items.parquet")
    name, vectors = read_real_vectors(tmp_path, 350)
    assert name == "amazon14-beauty, lsa-256"
    assert len(vectors) == 350


def test_made_vectors_come_in_chunks_of_one_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.bench.made_vectors._CHUNK", 64)
    chunks = list(make_vectors(150, 8))
    assert [chunk.shape for chunk in chunks] == [(64, 8), (64, 8), (22, 8)]
    assert chunks[0].dtype == np.float32


def test_changed_sizes_leave_targets_out() -> None:
    assert TokenizeBench().target(5.0) == 5.0
    assert TokenizeBench(items=10).target(5.0) is None
    assert TokenizeBench(overrides=("seed=1",)).target(5.0) is None
    recipe = TokenizeBench(overrides=("seed=4",)).read_recipe("rqvae", "seed=3")
    assert recipe.seed == 4


def test_rqvae_is_measured_against_lcrec() -> None:
    rows = tokenize_fit.bench_rqvae(TokenizeBench(items=200, repeats=2, overrides=QUICK))
    values = name_values(rows)
    own, ratio = values["error", "share of variance"], values["error", "ratio"]
    rival = values["error of the rival", "share of variance"]
    assert 0 < own < 2
    assert ratio == pytest.approx(own / rival, rel=0.5)
    assert values["items without codes of their own", "items"] == 0
    assert values["processor share", "ratio, fair near 1"] > 0
    assert {row.target for row in rows} == {None, 0}


def test_rqkmeans_is_measured_against_faiss(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="the extra [bench] is not installed")
    rows = tokenize_fit.bench_rqkmeans(TokenizeBench(items=900, repeats=2, overrides=QUICK[:1]))
    assert [row.unit for row in rows].count("ratio") == 4
    errors = [row.value for row in rows if row.name.endswith("error") and row.unit == "ratio"]
    assert all(0.3 < error < 3 for error in errors)
    assert rows[1].value < 1
    capfd.readouterr()  # faiss says that 900 points are few


def test_a_missing_faiss_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"faiss-cpu is not installed.*genrec\[bench\]"):
        tokenize_fit.bench_rqkmeans(TokenizeBench(items=100))


def test_uniqueness_is_measured_on_codes_that_collide() -> None:
    options = TokenizeBench(items=1500, overrides=("codebook_sizes=[8, 8, 32]",))
    values = name_values(tokenize_scale.bench_unique(options))
    assert 0 < values["collisions before", "share of items"] < 1
    assert 0 < values["moved", "share of items"] < 1
    assert values["items without codes of their own", "items"] == 0
    assert values["assign", "seconds"] > 0


def test_coding_costs_are_measured_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        calls.append(command)
        folder, shards = command[-1].partition("measure_coding(")[2].rstrip(")").split(", ")
        tokenize_scale.measure_coding(folder.strip("'"), int(shards))

    monkeypatch.setattr("genrec.bench.tokenize_scale.subprocess.run", run)
    monkeypatch.setattr(tokenize_scale, "VECTOR_WIDTH", 24)
    rows = tokenize_scale.bench_encode(TokenizeBench(items=403, overrides=QUICK))
    names = [row.name for row in rows]
    assert [name for name in names if name.endswith("encode")][:3] == [
        f"coding, {items} x 24: encode" for items in (100, 200, 400)
    ]
    assert {call[0] for call in calls} == {sys.executable}
    assert len(calls) == 3
    assert all(row.value > 0 for row in rows[:9:3])
    assert rows[-1].target is None


def test_memory_is_extrapolated_along_the_line() -> None:
    costs = [
        tokenize_scale._Cost(
            items, items * 1e-5, items * 2e-5, items * 4e-5, 500_000_000, 10**8 + items * 300
        )
        for items in (250_000, 500_000, 1_000_000)
    ]
    rows = tokenize_scale._describe_costs(costs, TokenizeBench())
    values = {row.name: row for row in rows}
    assert values["coding: processor time an item"].value == pytest.approx(1)
    assert values["coding: memory an item"].value == pytest.approx(300)
    goal = values["coding: memory at 10,000,000 items, extrapolated"]
    assert goal.value == pytest.approx(0.5 + 0.1 + 3.0)
    assert (goal.target, goal.met) == (8.0, True)


@pytest.mark.slow
def test_a_fresh_process_measures_coding(tmp_path: Path) -> None:
    recipe = TokenizeBench(overrides=QUICK).read_recipe("rqvae")
    tokenize_scale.write_shards(make_vectors(600, 384), tmp_path)
    tokenize_scale._fit_sample(recipe, tmp_path)
    cost = tokenize_scale._measure_apart(tmp_path, 1)
    assert cost.items == 600
    assert 0 < cost.encode_seconds < cost.seconds
    assert cost.base_bytes > 50_000_000


def test_a_device_is_measured_against_its_matrix_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenize_device, "WIDTH", 24)
    monkeypatch.setattr(tokenize_device, "_PRODUCT_STEPS", 2)
    overrides = (*QUICK, "rqvae.batch_size=64")
    rows = tokenize_device.bench_device(TokenizeBench(items=400, overrides=overrides))
    assert [row.unit for row in rows] == [
        "steps a second",
        "share of time",
        "items a second",
        "share of time",
    ]
    assert all(row.value > 0 for row in rows)
    assert "RQ-VAE on cpu, 400 x 24" in rows[0].name


def test_a_device_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match="--device is 'cuda:99', but torch sees no such GPU"):
        tokenize_device.bench_device(TokenizeBench(device="cuda:99"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured() -> None:
    rows = tokenize_device.bench_device(TokenizeBench(device="cuda", items=20_000))
    assert all(row.value > 0 for row in rows)


def test_sections_run_alone_and_unknown_ones_get_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[TokenizeBench] = []

    def measure(options: TokenizeBench) -> list[Any]:
        given.append(options)
        return [build_row("a figure", 1.0, "seconds")]

    for name in SECTIONS:
        monkeypatch.setitem(SECTIONS, name, measure)
    assert len(bench_tokenize(TokenizeBench())["rows"]) == 5
    with pytest.raises(RecipeError, match="did you mean 'unique'"):
        bench_tokenize(TokenizeBench(), ["uniqe"])
    given.clear()
    monkeypatch.setenv("GENREC_DATA", str(tmp_path))
    target = tmp_path / "rows.json"
    options = ["--only", "unique", "--only", "encode", "--items", "500", "--json", str(target)]
    done = run_bench("tokenize", *options, "seed=3")
    assert done.output.count("| a figure") == 2
    assert len(json.loads(target.read_text())["rows"]) == 2
    assert given == [TokenizeBench(tmp_path, 500, 1, "cpu", ("seed=3",))] * 2

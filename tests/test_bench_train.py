"""`genrec bench train` measures, and what it compares is comparable."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from genrec import cli
from genrec.bench import train_device, train_memory, train_packing
from genrec.bench.train import SECTIONS, bench_train
from genrec.bench.train_model import TINY, build_lora, count_flops
from genrec.bench.train_options import TrainBench
from genrec.bench.train_rivals import find_lcrec_loss, find_padded_loss, time_ways
from genrec.bench.train_rows import BenchRows, draw_batches, make_rows
from genrec.errors import RecipeError
from genrec.train.rows import EncodedRow, pack_rows

QUICK = TrainBench(quick=True, repeats=1)
VOCABULARY, FIRST_SID = 80, 60


@pytest.fixture
def made() -> BenchRows:
    random = np.random.default_rng(0)
    rows = [
        EncodedRow(random.integers(1, VOCABULARY, length).astype(np.int32), length - 3)
        for length in random.integers(6, 40, 24).tolist()
    ]
    return BenchRows("made-up", pack_rows(rows), list(range(FIRST_SID, VOCABULARY)), VOCABULARY)


@pytest.fixture
def quick_rows(made: BenchRows, monkeypatch: pytest.MonkeyPatch) -> BenchRows:
    for module in (train_packing, train_device):
        monkeypatch.setattr(module, "make_rows", lambda options: made)
    return made


def build_tiny() -> Any:
    return build_lora(TINY, VOCABULARY, range(FIRST_SID, VOCABULARY))


def name_values(rows: list[Any]) -> dict[tuple[str, str, str], float]:
    return {(row.name.rpartition(": ")[2], row.unit, row.against): row.value for row in rows}


def test_batches_are_shuffled_and_no_row_comes_twice(made: BenchRows) -> None:
    batches = draw_batches(made.rows, 3, 5)
    assert [len(batch) for batch in batches] == [5, 5, 5]
    seen = {row.input_ids.tobytes() for batch in batches for row in batch}
    assert len(seen) == 15
    assert batches[0][0].input_ids.tolist() != made.rows[0].input_ids.tolist()


def test_lcrec_pads_on_the_right_and_loses_the_same(made: BenchRows) -> None:
    model = build_tiny()
    rows = [made.rows[row] for row in range(6)]
    given: dict[str, torch.Tensor] = {}

    class Spy:
        def __call__(self, **words: Any) -> Any:
            given.update(words)
            return model(**words)

        def parameters(self) -> Any:
            return model.parameters()

    loss = find_lcrec_loss(Spy(), rows)
    assert loss.item() == pytest.approx(find_padded_loss(model, rows).item(), rel=1e-5)
    width = max(len(row.input_ids) for row in rows)
    assert given["input_ids"].shape == (6, width)
    for line, row in enumerate(rows):
        length = len(row.input_ids)
        assert given["input_ids"][line, :length].tolist() == row.input_ids.tolist()
        assert given["attention_mask"][line].tolist() == [1] * length + [0] * (width - length)
        expected = [-100] * row.n_prompt + row.input_ids[row.n_prompt :].tolist()
        assert given["labels"][line].tolist() == expected + [-100] * (width - length)


def test_all_ways_learn_the_same_from_the_same_batches(made: BenchRows) -> None:
    batches = draw_batches(made.rows, 2, 6)
    timed = time_ways(build_tiny, made.rows, batches, 1)
    assert list(timed.seconds) == ["packed", "padded", "lcrec"]
    for name in ("padded", "lcrec"):
        assert timed.losses[name] == pytest.approx(timed.losses["packed"], rel=1e-4)
    assert len(timed.losses["packed"]) == 4  # two passes over two batches, one to warm up
    assert timed.losses["packed"][0] != timed.losses["packed"][2]  # and they do learn
    assert timed.compare_speed("packed", "packed") == 1


@pytest.mark.usefixtures("quick_rows")
def test_packing_has_targets_at_full_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = train_packing.bench_packing(QUICK)
    values = name_values(rows)
    assert values["loss, packed", "relative difference", "padded as LC-Rec does"] < 1e-4
    assert 0 < values["padding in a batch", "share of positions", ""] < 1
    speeds = [row.value for row in rows if row.unit == "useful tokens/s"]
    assert len(speeds) == 3
    assert min(speeds) > 0
    assert {row.target for row in rows} == {None}
    monkeypatch.setattr(train_packing, "SMALL", TINY)
    monkeypatch.setattr(train_packing, "_BATCH_SIZE", 6)
    monkeypatch.setattr(train_packing, "_BATCHES", 2)
    rows = train_packing.bench_packing(TrainBench(repeats=1))
    assert {(row.unit, row.target) for row in rows if row.target is not None} == {
        ("times faster", 2.0),
        ("relative difference", 0.01),
    }


@pytest.mark.usefixtures("quick_rows")
def test_a_device_is_measured_against_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_device, "_PRODUCT_RUNS", 2)
    rows = train_device.bench_device(QUICK)
    shares = [row for row in rows if row.unit == "share"]
    assert [row.name.rpartition(": ")[2] for row in shares] == [
        f"{name}, model FLOP utilisation" for name in ("packed", "padded", "lcrec")
    ]
    assert all(0 < row.value < 1 for row in shares)
    assert "products of 512 x 512 measured here" in shares[0].against
    assert "made-up on cpu, hidden 32" in rows[0].name


def test_gpus_have_their_sheet_and_qwens_vocabulary(
    made: BenchRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_device._place_tokens(made, small=True) == (VOCABULARY, made.sid_tokens)
    assert train_device._place_tokens(made, small=False)[0] == 151_936 + 20
    monkeypatch.setattr(train_device, "_name_device", lambda device: "NVIDIA H100 80GB HBM3")
    assert 989e12 in train_device._find_peaks("cpu", torch.float32).values()


def test_a_gpu_that_is_not_there_is_refused_before_rows_are_made() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match="--device is 'cuda', but torch sees no GPU"):
        train_device.bench_device(TrainBench(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured() -> None:
    rows = train_device.bench_device(TrainBench(quick=True, repeats=1, device="cuda"))
    assert all(row.value > 0 for row in rows)


def test_operations_are_those_of_the_layers_the_head_and_attention() -> None:
    model = build_tiny()
    config = model.config
    width, keys = 4 * 8, 2 * 8
    weights = 2 * (32 * width * 2 + 32 * keys * 2 + 3 * 32 * 48)
    ranks = 32 * 2 * sum((32 + width) * 2 + (32 + keys) * 2 + (32 + 48) * 3 for _ in range(1))
    lengths = np.array([10, 6])
    attention = 3 * 4 * (100 + 36) / 2 * width * config.num_hidden_layers
    expected = 16 * (4 * weights + 6 * ranks) + attention + 4 * VOCABULARY * 32 * 5
    assert count_flops(model, lengths, 5) == pytest.approx(expected)


def test_memory_is_measured_in_fresh_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    peaks = iter([2_000_000_000, 5_000_000_000])

    def run(command: list[str], **_: Any) -> None:
        calls.append(command)
        words = command[-1].partition("measure_peak(")[2].rstrip(")").split(", ")
        Path(words[2].strip("'")).write_text(json.dumps({"bytes": next(peaks)}))

    monkeypatch.setattr("genrec.bench.train_memory.subprocess.run", run)
    rows = train_memory.bench_memory(TrainBench())
    assert [row.value for row in rows] == [2, 5, 2.5]
    assert "V 150,000, hidden 256, untied" in rows[0].name
    assert {call[0] for call in calls} == {sys.executable}
    assert ["'rows'" in call[-1] for call in calls] == [True, False]
    monkeypatch.undo()
    for way in train_memory.WAYS:
        train_memory.measure_peak(way, True, str(tmp_path / "peak.json"))
        assert json.loads((tmp_path / "peak.json").read_text())["bytes"] >= 0


@pytest.mark.parametrize("way", train_memory.WAYS)
def test_either_way_trains_what_it_says(way: str) -> None:
    model = train_memory._build_model(way, True)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    embedded = sum(size for name, size in trained.items() if "lora" not in name)
    n_rows = {"rows": 16, "matrices": 2000}[way]
    assert embedded == 2 * n_rows * TINY["hidden_size"]


@pytest.mark.slow
def test_a_fresh_process_tells_its_peak() -> None:
    assert train_memory._measure_apart("rows", True) > 1_000_000


def test_rows_are_those_of_the_shipped_prompts() -> None:
    made = make_rows(QUICK)
    assert made.name == "synthetic"
    assert len(made.rows) == 400
    assert {"sequential", "item-to-sid", "sid-to-item"} <= set(made.rows.task_names)
    ends = made.rows.tokens[made.rows.offsets[1:] - 1]
    assert len(set(ends.tolist())) == 1
    assert made.rows.tokens.max() < made.vocabulary
    assert made.sid_tokens[-1] == made.vocabulary - 1
    assert (made.rows.tokens >= made.sid_tokens[0]).mean() > 0.2


@pytest.mark.slow
def test_rows_come_from_the_real_set_where_it_is(find_real_data: Any) -> None:
    made = make_rows(TrainBench(find_real_data("amazon14-beauty").parent))
    assert made.name == "amazon14-beauty"
    assert len(made.rows) == 20_000
    assert made.vocabulary == 33_024 > made.sid_tokens[-1]


def test_sections_run_alone_and_unknown_ones_get_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[TrainBench] = []

    def measure(options: TrainBench) -> list[Any]:
        given.append(options)
        return []

    for name in SECTIONS:
        monkeypatch.setitem(SECTIONS, name, measure)
    assert bench_train(TrainBench())["rows"] == []
    assert len(given) == 3
    with pytest.raises(RecipeError, match="did you mean 'packing'"):
        bench_train(TrainBench(), ["packign"])
    given.clear()
    monkeypatch.setenv("GENREC_DATA", str(tmp_path))
    target = tmp_path / "rows.json"
    options = ["--only", "packing", "--only", "memory", "--quick", "--json", str(target)]
    done = CliRunner().invoke(cli.app, ["bench", "train", *options, "--repeats", "2"])
    assert done.exit_code == 0, done.exception
    assert json.loads(target.read_text())["rows"] == []
    assert given == [TrainBench(tmp_path, True, 2, "cpu")] * 2

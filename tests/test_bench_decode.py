"""The decoding benchmark: its rivals agree, its rows have their targets, every section runs."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from genrec import cli
from genrec.bench import decode_exact, decode_speed, decode_timing, vllm_decode
from genrec.bench.decode import SECTIONS, bench_decode
from genrec.bench.decode_device import bench_device
from genrec.bench.decode_models import LEVELS, build_qwen, build_small, draw_codes
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_rivals import (
    build_allowed,
    find_items,
    generate,
    list_products,
    run_products,
    search_copies,
)
from genrec.bench.decode_timing import Timing, time_watched
from genrec.bench.rows import BenchRow, build_row
from genrec.decode.engine import Search
from genrec.errors import MissingExtraError, ModelError, RecipeError

QUICK = DecodeBench(quick=True, repeats=1)


@pytest.fixture(scope="module")
def setup():
    return build_small(QUICK)


def run_bench(*arguments: str) -> Any:
    done = CliRunner().invoke(cli.app, ["bench", "decode", "--quick", "--repeats", "1", *arguments])
    assert done.exit_code == 0, done.exception
    return done


def test_all_ways_give_the_same_items(setup):
    prompts, width = setup.draw_prompts(3), setup.sizes.width
    allowed = build_allowed(setup)
    expected = setup.engine.rank_prompts(prompts.tolist(), width, Search(width)).item_index
    for tokens in (generate(setup, prompts, allowed), search_copies(setup, prompts, allowed)):
        items = np.array(find_items(setup, tokens)).reshape(-1, width)
        np.testing.assert_array_equal(items, expected)


def test_without_a_trie_answers_are_seldom_items(setup):
    tokens = generate(setup, setup.draw_prompts(2), None)
    assert tokens.shape == (2 * setup.sizes.width, LEVELS)
    assert set(find_items(setup, tokens)) == {-1}


def test_the_floor_multiplies_every_weight_for_every_token(setup):
    # 2 layers of 7 weights: 4 calls each, and 4 of the head; of the last layer only keys and
    # values are for the whole prompt.
    products = list_products(setup, 2, vocab=False)
    assert len(products) == (2 * 7 + 1) * 4
    n_tokens = [_count_tokens(each) for each in products]
    n_prompt, n_beams = 2 * setup.sizes.n_tokens, 2 * setup.sizes.width
    assert n_tokens.count(n_prompt) == 7 + 2
    assert n_tokens.count(n_beams) == (2 * 7 + 1) * 3
    assert n_tokens.count(2) == 5 + 1
    run_products(products)
    whole = list_products(setup, 1, vocab=True)[-1]()
    assert whole.shape == (setup.model.config.vocab_size, setup.sizes.width)


def _count_tokens(product: Any) -> int:
    first, second = product.args
    return len(first) if product.func is torch.nn.functional.linear else second.shape[1]


def test_many_tokens_go_through_the_layers_own_product(setup):
    products = list_products(setup, 8, vocab=False)
    assert products[0].func is torch.nn.functional.linear
    assert products[0]().shape[0] == 8 * setup.sizes.n_tokens


def test_random_codes_are_distinct_however_full_the_space_is():
    for n_items in (10, 16, 15):
        codes = draw_codes(n_items, 2)
        assert len(np.unique(codes, axis=0)) == len(codes) == n_items
        assert codes.shape[1] == LEVELS and codes.max() < 2


def test_ratios_are_of_rounds_that_both_ran():
    timing = Timing({"a": [4.0, 9.0, 8.0], "b": [1.0, 3.0, 4.0], "once": [6.0]}, None)
    assert timing.median("a") == 8.0
    assert timing.compare("a", "b") == 3.0
    assert timing.compare("once", "b") == 2.0
    assert timing.describe_others("here") == []


def test_contention_is_said():
    (fair,) = Timing({}, 0.01).describe_others("here")
    (unfair,) = Timing({}, 0.5).describe_others("here")
    assert "CONTENTION" not in fair.name and "CONTENTION" in unfair.name
    assert unfair.value == 0.5 and unfair.unit == "share, fair below 0.1"


def test_others_are_what_the_system_did_and_we_did_not(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(decode_timing, "_PROC_STAT", stat)
    monkeypatch.setattr(decode_timing, "_read_own", lambda: 0.0)
    stat.write_text("cpu 0 0 0 100 0 0 0 0\n")

    def work() -> None:
        stat.write_text("cpu 1000000 0 0 200 0 0 0 0\n")

    timing = time_watched({"x": work}, 1, {"slow": lambda: None})
    assert timing.others is not None and timing.others > 1
    assert [len(runs) for runs in timing.seconds.values()] == [1, 1]
    stat.unlink()
    assert time_watched({"x": lambda: None}, 1).others is None


def test_rows_have_targets_at_full_size_only():
    modes = ("level", "vocab", "floor level", "floor vocab")
    names = ("Hugging Face constrained", decode_speed._LOOP, *modes)
    timing = Timing({name: [1.0] for name in names}, None)
    targets = decode_speed.QWEN_TARGETS
    rows = decode_speed._describe(timing, "here", 1, DecodeBench(), targets)
    assert [row.target for row in rows if row.target] == [14.0, 1.5, 1.25, 12.0, 1.5, 1.25]
    assert [row.met for row in rows if row.target] == [False, False, True] * 2
    assert not any(row.target for row in decode_speed._describe(timing, "", 8, QUICK, targets))
    assert not any("unconstrained" in row.name for row in rows), "it did not run"


def test_slow_ways_run_once(monkeypatch, setup):
    given = []

    def watch(rivals, repeats, slow=None):
        given.append((list(slow or {}), repeats))
        return Timing({name: [1.0] for name in {**rivals, **(slow or {})}}, None)

    monkeypatch.setattr(decode_speed, "time_watched", watch)
    decode_speed._compare_ways(setup, DecodeBench(repeats=7), {}, is_slow=True)
    constrained, free = decode_speed._GENERATES
    assert given == [([constrained, free], 7), ([constrained], 7)]


def test_the_larger_model_is_named(setup):
    assert setup.name == "hidden 32" and build_qwen(QUICK).name == "tiny for 0.6B"
    assert DecodeBench().sizes.describe(8) == "8 x 200 tokens, width 20"


@pytest.mark.parametrize("section", ["small", "catalogue", "exact", "device"])
def test_sections_write_rows_and_print_a_table(section, tmp_path):
    target = tmp_path / "rows.json"
    done = run_bench("--only", section, "--json", str(target))
    written = json.loads(target.read_text())
    assert written["schema"] == 1 and len(written["rows"]) >= 6
    for row in written["rows"]:
        assert row["target"] is None, "sizes are not those of the targets"
        assert np.isfinite(row["value"])
        assert row["name"] in done.output
        assert "tokens, " in row["name"] or row["name"].startswith("trie of")


def test_recall_is_of_users_whose_exact_answer_is_known(setup):
    prompts = setup.draw_prompts(3).tolist()
    rows = decode_exact._compare_widths(setup.engine, prompts, 4, "level", "here")
    values = {(row.name, row.unit): row.value for row in rows}
    assert 0 <= values["here: width 4, recall", "share"] <= 1
    assert values["here: exact, certified", "share"] == 1
    assert (
        values["here: width 4", "evaluations a prompt"]
        < values["here: exact", "evaluations a prompt"]
    )


def test_without_certified_answers_there_is_no_recall(monkeypatch, setup):
    flat = setup.engine.rank_prompts(setup.draw_prompts(2).tolist(), 4, Search(4, "level"))
    flat.certified[:] = False
    monkeypatch.setattr(decode_exact, "_run", lambda *_: (flat, 1.0))
    rows = decode_exact._compare_widths(setup.engine, [[1], [2]], 4, "level", "here")
    assert not [row for row in rows if "recall" in row.name]


def test_a_trained_model_can_be_measured(monkeypatch, setup, tmp_path):
    opened = SimpleNamespace(
        n_items=setup.engine.n_items,
        engine=setup.engine,
        make_up_prompts=lambda n: setup.draw_prompts(n).tolist(),
    )
    monkeypatch.setattr(decode_exact.Recommender, "from_pretrained", lambda *_, **__: opened)
    rows = decode_exact.bench_exact(DecodeBench(quick=True, model=tmp_path / "mine"))
    assert any(row.name.startswith("mine, 300 items, 3 random histories") for row in rows)


def test_a_gpu_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="--device is 'cuda', but torch sees no GPU"):
        bench_device(DecodeBench(device="cuda"))


def test_sections_run_alone_and_vllm_where_it_is(monkeypatch):
    for name in SECTIONS:
        monkeypatch.setitem(SECTIONS, name, lambda _, name=name: [build_row(name, 1.0, "seconds")])
    with pytest.raises(RecipeError, match="did you mean 'catalogue'"):
        bench_decode(QUICK, ["catalog"])
    for is_there, expected in ((True, list(SECTIONS)), (False, [*[*SECTIONS][:4], "device"])):
        monkeypatch.setattr("genrec.bench.decode.has_vllm", lambda is_there=is_there: is_there)
        assert [row["name"] for row in bench_decode(QUICK)["rows"]] == expected


def test_vllm_is_asked_in_a_process_of_its_own(monkeypatch):
    rows = [build_row("a figure", 1.0, "seconds", most=2.0)]

    def run(command, *, env, **_):
        assert command[:3] == [sys.executable, "-m", "genrec.bench.vllm_decode"]
        assert env["VLLM_ENABLE_V1_MULTIPROCESSING"]
        monkeypatch.setattr(vllm_decode, "measure", lambda options: rows * options.repeats)
        vllm_decode.main(command[3:])
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(vllm_decode, "has_vllm", lambda: True)
    monkeypatch.setattr(subprocess, "run", run)
    assert vllm_decode.bench_vllm(DecodeBench(quick=True, repeats=2)) == rows * 2


def test_a_vllm_that_stops_says_why(monkeypatch):
    monkeypatch.setattr(vllm_decode, "has_vllm", lambda: True)
    ended = subprocess.CompletedProcess([], 3, stderr="much\n" * 20 + "no memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ModelError, match=r"exit status 3; .*said last:\n(much\n){9}no memory"):
        vllm_decode.bench_vllm(QUICK)


def test_the_vllm_section_needs_vllm(monkeypatch):
    monkeypatch.setattr(vllm_decode, "has_vllm", lambda: False)
    with pytest.raises(MissingExtraError, match=r"genrec\[vllm\]"):
        vllm_decode.bench_vllm(QUICK)


class StandIn:
    """As much of vLLM as the section calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        core = SimpleNamespace(shutdown=lambda: self.calls.append("shutdown"))
        self.llm_engine = SimpleNamespace(engine_core=core)

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def beam_search(self, asked: list[Any], params: Any) -> list[Any]:
        assert params.max_tokens == LEVELS and params.ignore_eos
        beam = SimpleNamespace(tokens=[*asked[0]["prompt_token_ids"], 1, 2, 3, 4])
        return [SimpleNamespace(sequences=[beam] * params.beam_width)] * len(asked)

    def generate(self, asked: list[Any], params: Any, *, use_tqdm: bool) -> None:
        assert not use_tqdm and params.temperature == 0
        n_tokens = {len(prompt["prompt_token_ids"]) for prompt in asked}
        assert n_tokens == ({192} if params.max_tokens == 1 else {193})


def test_the_vllm_section_compares_arbitrary_and_aligned_prompts(monkeypatch):
    llm = StandIn()
    sampling = ModuleType("vllm.sampling_params")
    sampling.BeamSearchParams = SimpleNamespace  # type: ignore[attr-defined]
    vllm = ModuleType("vllm")
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(vllm_decode, "open_vllm", lambda *_, **__: llm)
    asked: list[int] = []

    def build_engine(_, trie, token_ids):
        def rank(prompts, k, search):
            asked.append(len(prompts[0]))
            return SimpleNamespace(item_index=np.zeros((len(prompts), k), dtype=np.int64))

        return SimpleNamespace(block_tokens=32, rank_prompts=rank)

    monkeypatch.setattr(vllm_decode, "VllmEngine", build_engine)
    rows: list[BenchRow] = vllm_decode.measure(QUICK)
    assert set(asked) == {200, 192}, "192 with dropped tokens too"
    assert llm.calls[-1] == "shutdown" and llm.calls.count("reset") > 8
    dropped = [row.name for row in rows if "dropped to the block" in row.name]
    assert len(dropped) == 4 and all("200 tokens" in name for name in dropped)
    shares = {row.value for row in rows if row.name.endswith("beam search, answers that are items")}
    assert shares == {0.0}

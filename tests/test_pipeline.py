"""The chain: order, skipping, going on after a fault, records; each step writes one file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from genrec import pipeline
from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.errors import ArtifactError, DataError, RecipeError
from genrec.pipeline import (
    STEPS,
    ChainRecipe,
    check_recipe,
    parse_chain,
    read_chain,
    read_step,
    run_chain,
)
from genrec.recipe import Recipe

CHAIN: dict[str, Any] = {"data": {"source": "synthetic"}, "train": {"base": "some/model"}}


class Calls:
    """Stands in for the steps: notes each call, writes one file, fails where told."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fails_at = ""

    def make(self, step: pipeline.Step) -> pipeline.Step:
        def run(recipe: Recipe, inputs: Mapping[str, Artifact], out: Path) -> Artifact:
            self.made.append(step.name)
            if step.name == self.fails_at:
                raise DataError("no such thing")
            with write_artifact(out, step=step.name, recipe=recipe, inputs=inputs) as work:
                (work.path / "x").write_text(recipe.model_dump_json())
            return work.artifact

        return pipeline.Step(step.name, step.folder, step.inputs, run)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    fake = Calls()
    monkeypatch.setattr(pipeline, "STEPS", tuple(fake.make(step) for step in STEPS))
    return fake


def test_steps_run_in_order_and_are_recorded(calls: Calls, tmp_path: Path) -> None:
    made = run_chain(parse_chain(CHAIN, source="x"), tmp_path / "run")
    assert calls.made == ["data", "embed", "tokenize", "prompts", "train", "eval"]
    assert made["eval"].path == tmp_path / "run" / "report"
    assert set(made["train"].manifest.inputs) == {"data", "tokenize", "prompts"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [step["step"] for step in record["steps"]] == calls.made
    assert all(step["peak_memory_bytes"] > 1_000_000 for step in record["steps"])


def test_a_base_section_adds_its_step(calls: Calls, tmp_path: Path) -> None:
    made = run_chain(parse_chain({**CHAIN, "base": {}}, source="x"), tmp_path)
    assert "base" in calls.made
    assert "base" in made["train"].manifest.inputs


def test_what_is_up_to_date_is_skipped_and_said(
    calls: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = parse_chain(CHAIN, source="x")
    run_chain(chain, tmp_path)
    before = json.loads((tmp_path / "run.json").read_text())
    calls.made.clear()
    with caplog.at_level(logging.INFO, logger="genrec"):
        run_chain(chain, tmp_path)
    assert calls.made == []
    assert caplog.text.count("up to date, skipped") == 6
    assert json.loads((tmp_path / "run.json").read_text()) == before, "costs of the first run stay"


def test_a_changed_value_runs_its_step_and_all_after_it(calls: Calls, tmp_path: Path) -> None:
    run_chain(parse_chain(CHAIN, source="x"), tmp_path)
    calls.made.clear()
    run_chain(parse_chain({**CHAIN, "tokenize": {"seed": 7}}, source="x"), tmp_path)
    assert calls.made == ["tokenize", "prompts", "train", "eval"]


def test_a_changed_file_runs_its_step_again(calls: Calls, tmp_path: Path) -> None:
    chain = parse_chain(CHAIN, source="x")
    run_chain(chain, tmp_path)
    calls.made.clear()
    (tmp_path / "embeddings" / "x").write_text("tampered")
    run_chain(chain, tmp_path)
    assert calls.made == ["embed"], "its output came out the same, so nothing after it runs"


def test_a_stopped_run_goes_on_where_it_stopped(calls: Calls, tmp_path: Path) -> None:
    chain = parse_chain(CHAIN, source="x")
    calls.fails_at = "prompts"
    with pytest.raises(DataError, match="no such thing"):
        run_chain(chain, tmp_path)
    assert load_artifact(tmp_path / "tokenizer", step="tokenize")
    calls.made.clear()
    calls.fails_at = ""
    run_chain(chain, tmp_path)
    assert calls.made == ["prompts", "train", "eval"]


def test_until_stops_early_and_force_runs_all(calls: Calls, tmp_path: Path) -> None:
    chain = parse_chain(CHAIN, source="x")
    assert list(run_chain(chain, tmp_path, until="embed")) == ["data", "embed"]
    calls.made.clear()
    run_chain(chain, tmp_path, until="embed", force=True)
    assert calls.made == ["data", "embed"]
    with pytest.raises(RecipeError, match="no step 'tokenise' in this chain; did you mean 'token"):
        run_chain(chain, tmp_path, until="tokenise")


def test_foreign_files_stop_it_before_any_work(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="holds files that genrec did not write"):
        run_chain(parse_chain(CHAIN, source="x"), tmp_path)
    assert calls.made == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file; a run needs a directory"):
        run_chain(parse_chain(CHAIN, source="x"), tmp_path / "file")


def test_a_chain_needs_a_base_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no base model: give train\.base"):
        run_chain(parse_chain({"data": {}}, source="x"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_seed_reaches_every_section_that_sets_none() -> None:
    chain = parse_chain({**CHAIN, "seed": 5, "tokenize": {"seed": 9}, "base": {}}, source="x")
    assert chain.data.seed == chain.embed.seed == chain.train.seed == chain.eval.seed == 5
    assert chain.tokenize.seed == 9
    assert chain.base is not None
    assert chain.base.seed == 5


def test_use_starts_from_a_shipped_recipe() -> None:
    chain = parse_chain({**CHAIN, "eval": {"use": "leave-last-out", "max_users": 7}}, source="x")
    assert chain.eval.max_users == 7
    with pytest.raises(RecipeError, match="unknown eval recipe 'leave-lst-out'; did you mean"):
        parse_chain({**CHAIN, "eval": {"use": "leave-lst-out"}}, source="x")


def test_faults_of_all_sections_come_together() -> None:
    faulty = {"data": {"sorce": 1}, "train": {"epochs": -1}, "evall": {}}
    with pytest.raises(RecipeError) as caught:
        parse_chain(faulty, source="mine.yaml")
    message = str(caught.value)
    assert "mine.yaml: 3 problems" in message
    assert "data.sorce: unknown key; did you mean 'source'?" in message
    assert "train.epochs" in message
    assert "evall: unknown key; did you mean 'eval'?" in message


def test_a_section_must_be_a_mapping() -> None:
    with pytest.raises(RecipeError, match=r"data: .*dictionary"):
        parse_chain({"data": 3}, source="x")


def test_one_step_reads_defaults_files_and_sections_of_chains(tmp_path: Path) -> None:
    assert read_step("train", None, ["epochs=2"]).model_dump()["epochs"] == 2
    chain = tmp_path / "chain.yaml"
    chain.write_text("kind: chain\nseed: 3\ndata: {}\ntrain: {epochs: 4}\n")
    values = read_step("train", chain, ["rank=2"]).model_dump()
    assert (values["epochs"], values["rank"], values["seed"]) == (4, 2, 3)
    with pytest.raises(RecipeError, match="is of kind 'eval', but 'train'"):
        read_step("train", "leave-last-out")


def test_only_chains_run(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("kind: train\nepochs: 4\n")
    with pytest.raises(RecipeError, match="it holds one step's values"):
        read_chain(path)


def test_check_names_unknown_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("kind: trian\n")
    with pytest.raises(RecipeError, match="kind 'trian' is unknown; did you mean 'train'"):
        check_recipe(path)


def test_every_kind_has_its_recipe_class() -> None:
    assert set(ChainRecipe.model_fields) - {"name", "seed"} <= set(pipeline.RECIPE_KINDS)

"""The recommender, from a real run of the whole chain: contract, messages, files, command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import genrec
from genrec import cli
from genrec.errors import (
    ArtifactError,
    CapacityError,
    DataError,
    ModelError,
    RecipeError,
    UnknownItemError,
)
from genrec.recommender import Recommender
from genrec.types import RanksItems
from tests.contracts.recommender_contract import RecommenderContract

runner = CliRunner()


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.from_pretrained(tiny_run / "model")


class TestContract(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, recommender: Recommender) -> RanksItems:
        return recommender


def test_the_public_names_load_lazily() -> None:
    assert genrec.Recommender is Recommender
    assert callable(genrec.load_dataset)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genrec.nothing  # noqa: B018


def test_answers_are_unseen_items_with_titles(recommender: Recommender) -> None:
    history = recommender.item_ids[:3]
    answers = recommender.recommend(history, k=5)
    assert [answer.rank for answer in answers] == [1, 2, 3, 4, 5]
    assert not {answer.item_id for answer in answers} & set(history)
    assert all(answer.title and answer.sid.startswith("<a_") for answer in answers)
    assert [a.item_id for a in answers] == [
        a.item_id for a in recommender.recommend_batch([history, history[:1]], k=5)[0]
    ]


def test_unknown_ids_are_named_or_skipped(recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    with pytest.raises(UnknownItemError, match=r"has no item 'nope'\. Correct.*--unknown skip"):
        recommender.recommend([known, "nope"])
    with pytest.raises(UnknownItemError, match="and 2 more"):
        recommender.recommend([f"no{i}" for i in range(7)])
    assert recommender.recommend([known, "nope"], unknown="skip") == recommender.recommend([known])
    with pytest.raises(DataError, match="none of its 1 ids is in the catalogue"):
        recommender.recommend(["nope"], unknown="skip")
    with pytest.raises(RecipeError, match="unknown='ignore' is not a policy"):
        recommender.recommend([known], unknown="ignore")  # type: ignore[arg-type]


def test_an_unknown_id_close_to_a_known_one_gets_a_suggestion(recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    with pytest.raises(UnknownItemError, match="did you mean"):
        recommender.recommend([known + "x"])


def test_empty_histories_and_strings_are_refused(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="needs at least one known item, but it is empty"):
        recommender.recommend([])
    with pytest.raises(DataError, match="a list of item ids, not one string"):
        recommender.recommend("B0001")


def test_k_beyond_the_catalogue_is_refused(recommender: Recommender) -> None:
    history = recommender.item_ids[:2]
    with pytest.raises(CapacityError, match=r"k=61 answers were asked for, .* has 60 items"):
        recommender.recommend(history, k=61)
    assert len(recommender.recommend(history, k=60)) == 58
    assert len(recommender.recommend(history, k=60, exclude_seen=False)) == 60


def test_titles_of_unknown_items_are_empty(recommender: Recommender) -> None:
    assert recommender.find_titles(["nope", recommender.item_ids[0]])[0] == ""


def test_an_unknown_dtype_is_explained(tiny_run: Path) -> None:
    with pytest.raises(RecipeError, match="unknown dtype 'float31'; did you mean 'float32'"):
        Recommender.from_pretrained(tiny_run / "model", dtype="float31")


def test_a_half_written_model_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no manifest"):
        Recommender.from_pretrained(tmp_path / "model")


def test_a_model_whose_parts_do_not_belong_together_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((tiny_run / "model" / "genrec.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "base")
    monkeypatch.setattr(
        "genrec.recommender.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer
    )
    assert settings["codebook_sizes"] == [8, 8, 8]
    with pytest.raises(ModelError, match="tokenizer lacks 8 of 8 tokens of level 1"):
        Recommender.from_pretrained(tiny_run / "model")


def test_the_export_is_a_plain_checkpoint(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    ids = tokenizer("history:<a_1><b_1><c_1> next:", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.isfinite(model(ids).logits).all()


def test_the_command_answers_in_every_form(tiny_run: Path, tmp_path: Path) -> None:
    model = str(tiny_run / "model")
    first, second = pl.read_parquet(tiny_run / "data" / "items.parquet")["item_id"][:2].to_list()
    table = runner.invoke(
        cli.app, ["recommend", "-m", model, first, second, "-k", "3", "--format", "table"]
    )
    assert table.exit_code == 0, table.exception
    assert "history, oldest first" in table.output
    lines = runner.invoke(
        cli.app, ["recommend", "-m", model, "-k", "3"], input=json.dumps([first]) + "\n"
    )
    assert len(json.loads(lines.stdout)["recommendations"]) == 3
    users = tmp_path / "users.jsonl"
    users.write_text(json.dumps({"user_id": "u", "history": [first, second]}) + "\n")
    target = tmp_path / "answers.parquet"
    written = runner.invoke(
        cli.app, ["recommend", "-m", model, "-i", str(users), "-o", str(target), "-k", "3"]
    )
    assert written.exit_code == 0, written.exception
    assert pl.read_parquet(target)["rank"].to_list() == [1, 2, 3]


def test_the_report_of_the_run_is_complete(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "report" / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert metrics["valid_item_rate"] == 1.0
    assert {"genrec", "popularity", "markov", "oracle"} <= set(metrics["systems"])
    page = (tiny_run / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_samples_for_the_screen(tiny_run: Path) -> None:
    from genrec.batch.samples import recommend_samples

    samples = recommend_samples(tiny_run, users=2, k=4)
    known = set(pl.read_parquet(tiny_run / "data" / "users.parquet")["user_id"])
    assert len(samples) == 2
    assert {history.user_id for history, _, _ in samples} <= known
    for history, titles, answers in samples:
        assert len(titles) == len(history.item_ids)
        assert len(answers) == 4


def test_a_finished_step_is_not_run_again_by_its_own_command(tiny_run: Path) -> None:
    done = runner.invoke(
        cli.app,
        ["embed", "lsa.dimensions=16", "seed=3", "--data", str(tiny_run / "data"),
         "--out", str(tiny_run / "embeddings")],
    )  # fmt: skip
    assert "is up to date" in done.output, done.exception


def test_eval_command_shows_the_table(tiny_run: Path, tmp_path: Path) -> None:
    done = runner.invoke(
        cli.app,
        ["eval", "metrics=[HR@5]", "n_bootstrap=100", "n_permutations=100",
         "--data", str(tiny_run / "data"), "--model", str(tiny_run / "model"),
         "--out", str(tmp_path / "report")],
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "popularity" in done.output

from __future__ import annotations

import json

import polars as pl
import pytest

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, CapacityError, DataError, RecipeError
from genrec.eval.recipe import EvalRecipe
from genrec.eval.step import make_report, name_dataset
from tests.eval.tiny import N_ITEMS, N_USERS, NextItem, write_data

QUICK = EvalRecipe(metrics=("HR@5", "NDCG@10"), n_bootstrap=100, n_permutations=100, batch_size=16)


@pytest.fixture(scope="module")
def report(tmp_path_factory, data_path, model_path):
    out = tmp_path_factory.mktemp("report") / "report"
    return make_report(QUICK, data_path, out, systems=[NextItem()], model=model_path)


def read_metrics(artifact):
    return json.loads((artifact.path / "metrics.json").read_text(encoding="utf-8"))


def test_the_report_is_an_artefact_of_data_and_model(report, data_path, model_path):
    loaded = load_artifact(report.path, step="eval")
    assert set(loaded.manifest.files) == {
        "metrics.json",
        "per_user.parquet",
        "rankings.parquet",
        "report.html",
    }
    digests = {role: record["digest"] for role, record in loaded.manifest.inputs.items()}
    assert digests == {
        "data": load_artifact(data_path).manifest.digest,
        "train": load_artifact(model_path).manifest.digest,
    }
    assert set(loaded.manifest.facts["seconds"]) == {"genrec", "popularity", "markov"}


def test_the_figures_are_those_of_the_systems(report):
    metrics = read_metrics(report)
    assert metrics["dataset"] == "tiny"
    assert metrics["users"] == N_USERS
    assert metrics["valid_item_rate"] == 1.0
    assert list(metrics["systems"]) == ["genrec", "popularity", "markov", "oracle"]
    assert metrics["systems"]["genrec"]["HR@5"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert metrics["systems"]["oracle"]["NDCG@10"]["mean"] == 1.0
    assert metrics["systems"]["popularity"]["HR@5"]["mean"] < 0.9


def test_the_tables_hold_every_user_of_every_system(report):
    users = pl.read_parquet(report.path / "per_user.parquet")
    rankings = pl.read_parquet(report.path / "rankings.parquet")
    assert users.height == rankings.height == 4 * N_USERS
    means = users.group_by("system").agg(pl.col("HR@5").mean())
    metrics = read_metrics(report)["systems"]
    for system, mean in means.rows():
        assert mean == pytest.approx(metrics[system]["HR@5"]["mean"])


def test_same_seed_same_figures(report, tmp_path, data_path):
    again = make_report(QUICK, data_path, tmp_path / "again", systems=[NextItem()])
    assert read_metrics(again) == read_metrics(report)
    assert again.manifest.inputs.keys() == {"data"}


def test_a_sample_of_users_on_the_valid_split(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"max_users": 7, "split": "valid", "name": "mine"})
    system = NextItem()
    made = make_report(recipe, data_path, tmp_path / "out", systems=[system])
    metrics = read_metrics(made)
    assert (metrics["dataset"], metrics["split"], metrics["users"]) == ("mine", "valid", 7)
    assert "oracle" not in metrics["systems"]
    assert sum(system.batch_sizes) == 7
    assert metrics["systems"]["genrec"]["HR@5"]["mean"] == 1.0


def test_the_oracle_follows_the_sample(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"max_users": 9, "systems": ("oracle",)})
    metrics = read_metrics(make_report(recipe, data_path, tmp_path / "out"))
    assert metrics["systems"]["oracle"]["HR@5"]["mean"] == 1.0


def test_the_oracle_is_left_out_where_it_is_not_known(tmp_path):
    data = write_data(tmp_path / "data", oracle=False)
    metrics = read_metrics(make_report(QUICK, data.path, tmp_path / "out"))
    assert list(metrics["systems"]) == ["popularity", "markov"]


@pytest.mark.parametrize("values", [{"metrics": ("HR@13",)}, {"exclude_seen": False}])
def test_the_oracle_is_left_out_where_it_answers_another_question(tmp_path, data_path, values):
    recipe = QUICK.model_copy(update=values)
    metrics = read_metrics(make_report(recipe, data_path, tmp_path / "out"))
    assert "oracle" not in metrics["systems"]


def test_a_baseline_of_one_s_own_is_found_by_its_path(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"systems": ("tests.eval.tiny:fit_next_item",)})
    metrics = read_metrics(make_report(recipe, data_path, tmp_path / "out"))
    assert list(metrics["systems"]) == ["next-item"]


def test_an_unknown_baseline_is_refused_with_a_suggestion(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"systems": ("markow",)})
    with pytest.raises(RecipeError, match="unknown baseline 'markow'; did you mean 'markov'"):
        make_report(recipe, data_path, tmp_path / "out")


def test_nothing_to_evaluate_is_refused(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"systems": ()})
    with pytest.raises(RecipeError, match="no system to evaluate"):
        make_report(recipe, data_path, tmp_path / "out")


def test_a_system_of_another_catalogue_leaves_nothing_behind(tmp_path, data_path):
    with pytest.raises(DataError, match=rf"genrec ranks a catalogue of 5 items.*{N_ITEMS}"):
        make_report(QUICK, data_path, tmp_path / "out", systems=[NextItem(n_items=5)])
    assert not (tmp_path / "out").exists()


def test_a_cutoff_above_the_catalogue_is_refused(tmp_path, data_path):
    recipe = QUICK.model_copy(update={"metrics": ("HR@31",)})
    with pytest.raises(CapacityError, match="cut off at 31, but the catalogue has 30 items"):
        make_report(recipe, data_path, tmp_path / "out")


def test_a_directory_that_is_no_model_is_refused(tmp_path, data_path):
    with pytest.raises(ArtifactError, match="genrec data"):
        make_report(QUICK, data_path, tmp_path / "out", model=data_path)


def test_data_without_a_path_is_called_by_its_source(dataset, tmp_path):
    assert name_dataset(dataset) == "tiny"
    manifest = dataset.artifact.manifest
    manifest.recipe["path"], before = None, manifest.recipe["path"]
    try:
        assert name_dataset(dataset) == "synthetic"
    finally:
        manifest.recipe["path"] = before

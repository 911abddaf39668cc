from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from genrec.eval.metrics import Metric
from genrec.eval.protocol import SystemResult
from genrec.eval.recipe import EvalRecipe
from genrec.eval.summary import summarize, tabulate_rankings, tabulate_users
from genrec.types import RankedItems

RECIPE = EvalRecipe(metrics=("HR@1", "MRR@2"), n_bootstrap=100, n_permutations=100)
USERS = np.array([7, 8, 9], dtype=np.int64)


def make_result(name, rows, hits, *, n_answers=6, n_valid=6, seconds=0.5):
    item_index = np.array(rows, dtype=np.int64)
    ranked = RankedItems(
        item_index,
        np.where(item_index < 0, -np.inf, 1.0).astype(np.float32),
        np.ones(len(rows), dtype=np.bool_),
    )
    values = np.array(hits, dtype=np.float64)
    scores = {Metric("HR", 1): values, Metric("MRR", 2): values / 2}
    rank = np.array([1 if hit else 0 for hit in hits], dtype=np.int64)
    return SystemResult(name, ranked, scores, rank, n_answers, n_valid, seconds)


@pytest.fixture
def results():
    return [
        make_result("genrec", [[1, 2], [3, -1], [-1, -1]], [1, 1, 0], n_answers=3, n_valid=3),
        make_result("markov", [[2, 1], [4, 5], [6, 7]], [0, 1, 0]),
        make_result("oracle", [[1, 2], [3, 4], [5, 6]], [1, 1, 1], n_valid=5, seconds=None),
    ]


def test_the_summary_is_the_schema_of_metrics_json(results):
    values = json.loads(json.dumps(summarize(results, RECIPE, "tiny").as_json()))
    assert list(values) == [
        "schema",
        "dataset",
        "split",
        "users",
        "valid_item_rate",
        "systems",
        "comparisons",
    ]
    assert (values["schema"], values["dataset"], values["split"]) == (1, "tiny", "test")
    assert values["users"] == 3
    assert list(values["systems"]) == ["genrec", "markov", "oracle"]
    assert list(values["systems"]["genrec"]) == ["HR@1", "MRR@2"]
    first = values["systems"]["genrec"]["HR@1"]
    assert list(first) == ["mean", "low", "high"]
    assert first["mean"] == pytest.approx(2 / 3)
    assert first["low"] <= first["mean"] <= first["high"]


def test_every_pair_is_compared_on_every_metric(results):
    rows = summarize(results, RECIPE, "tiny").as_json()["comparisons"]
    assert [(row["a"], row["b"], row["metric"]) for row in rows] == [
        (a, b, metric)
        for a, b in [("genrec", "markov"), ("genrec", "oracle"), ("markov", "oracle")]
        for metric in ("HR@1", "MRR@2")
    ]
    assert rows[0]["difference"] == pytest.approx(1 / 3)
    assert all(0 < row["p_value"] <= 1 for row in rows)


def test_the_valid_rate_is_the_worst_evaluated_system_s(results):
    assert summarize(results, RECIPE, "tiny").valid_item_rate == 1.0
    broken = make_result("broken", [[1, 1]] * 3, [0, 0, 0], n_valid=3)
    assert summarize([*results, broken], RECIPE, "tiny").valid_item_rate == 0.5
    assert summarize(results[2:], RECIPE, "tiny").valid_item_rate == pytest.approx(5 / 6)


def test_same_seed_same_summary(results):
    assert summarize(results, RECIPE, "tiny") == summarize(results, RECIPE, "tiny")


def test_the_user_table_keeps_every_value(results):
    table = tabulate_users(results, USERS)
    assert table.columns == ["system", "user_index", "target_rank", "HR@1", "MRR@2"]
    assert table.height == 9
    genrec = table.filter(pl.col("system") == "genrec")
    assert genrec["user_index"].to_list() == [7, 8, 9]
    assert genrec["target_rank"].to_list() == [1, 1, None]
    assert genrec["MRR@2"].to_list() == [0.5, 0.5, 0.0]


def test_the_ranking_table_keeps_what_was_answered(results):
    table = tabulate_rankings(results, USERS)
    assert table.schema == {
        "user_index": pl.Int64,
        "system": pl.String,
        "item_index": pl.List(pl.Int64),
        "scores": pl.List(pl.Float32),
    }
    genrec = table.filter(pl.col("system") == "genrec")
    assert genrec["item_index"].to_list() == [[1, 2], [3], []]
    assert genrec["scores"].to_list() == [[1.0, 1.0], [1.0], []]
    assert table.filter(pl.col("system") == "oracle")["item_index"].to_list()[2] == [5, 6]

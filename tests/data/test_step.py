from __future__ import annotations

import json
import logging
from pathlib import Path

import polars as pl
import pytest

from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import DataError
from tests.data.conftest import Make, Write
from tests.data.made_rows import choices

PAIRS = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "a"), ("v", "b"), ("v", "a"), ("w", "z")]


@pytest.fixture
def log(write_jsonl: Write) -> str:
    records = [
        {"user_id": user, "item_id": item, "timestamp": time, "rating": 1 + time % 5}
        for time, (user, item) in enumerate(PAIRS)
    ]
    return str(write_jsonl("log.jsonl", records))


@pytest.fixture
def items(write_jsonl: Write) -> str:
    records = [{"item_id": i, "title": i.upper()} for i in ("c", "cold", "b", "a")]
    return str(write_jsonl("items.jsonl", records))


def test_artifact_tables_have_the_agreed_shape(make: Make, log: str, items: str) -> None:
    dataset = make(source="table", interactions=log, items=items)
    assert dict(dataset.items.schema) == {
        "item_index": pl.Int64,
        "item_id": pl.String,
        "title": pl.String,
        "brand": pl.String,
        "categories": pl.String,
        "description": pl.String,
        "price": pl.Float64,
        "text": pl.String,
    }
    assert dict(dataset.users.schema) == {"user_index": pl.Int64, "user_id": pl.String}
    assert dict(dataset.interactions.schema) == {
        "user_index": pl.Int64,
        "item_index": pl.Int64,
        "position": pl.Int64,
        "split": pl.String,
        "timestamp": pl.Float64,
        "rating": pl.Float64,
    }
    assert dataset.items["item_index"].to_list() == list(range(4))
    assert dataset.item_ids == ("c", "b", "a", "z")  # metadata's order, then the undescribed
    assert dataset.users["user_id"].to_list() == ["u", "v", "w"]
    keys = list(dataset.interactions.select("user_index", "position").iter_rows())
    assert keys == sorted(keys)


def test_same_recipe_same_files(log: str, items: str, tmp_path: Path) -> None:
    recipe = DataRecipe(source="table", interactions=log, items=items, users=2, seed=3)
    first = make_data(recipe, tmp_path / "first")
    again = make_data(recipe, tmp_path / "again")
    assert first.manifest.digest == again.manifest.digest


def test_counts_are_kept(make: Make, log: str, tmp_path: Path) -> None:
    dataset = make(source="table", interactions=log, deduplicate="pairs", k_core_items=2)
    stages = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert stages == [
        {"stage": "read", "users": 3, "items": 4, "interactions": 7},
        {"stage": "deduplicate", "users": 3, "items": 4, "interactions": 6},
        {"stage": "k_core", "users": 2, "items": 2, "interactions": 4},
    ]
    facts = dataset.artifact.manifest.facts
    assert facts["counts"] == stages
    assert facts["split"] == {"test": 2, "train": 2}
    assert facts["files"][0]["path"] == log
    assert len(facts["files"][0]["sha256"]) == 64


def test_items_without_metadata(
    make: Make, log: str, items: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = make(source="table", interactions=log, items=items)
    assert kept.artifact.manifest.facts["items_without_text"] == 1
    assert "1 of 4 chosen items have no metadata; policy: keep" in caplog.text
    dropped = make(source="table", interactions=log, items=items, items_without_metadata="drop")
    assert dropped.item_ids == ("c", "b", "a")
    assert dropped.users["user_id"].to_list() == ["u", "v"]
    with pytest.raises(DataError, match=r"left after described.*do the ids of both files match"):
        make(source="table", interactions=log, items_without_metadata="drop")


def test_cold_items_stay_if_asked(make: Make, log: str, items: str) -> None:
    dataset = make(source="table", interactions=log, items=items, cold_items=True, k_core_items=2)
    assert dataset.item_ids == ("c", "cold", "b", "a")


def test_history_cap_and_filters(make: Make, log: str) -> None:
    dataset = make(source="table", interactions=log, max_history=1, deduplicate="none")
    assert choices(dataset, "v") == [("a", "train"), ("b", "valid"), ("a", "test")]
    assert dataset.artifact.manifest.facts["counts"][-1]["stage"] == "max_history"
    rated = make(source="table", interactions=log, min_rating=2)
    assert choices(rated, "u") == [("b", "train"), ("c", "test")]
    assert make(source="table", interactions=log, users=2).n_users == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_core_users": 9}, r"left after k_core \(7 before it\); lower k_core_users.*9 and 0"),
        ({"min_rating": 99}, r"left after min_rating \(7 before it\); lower min_rating"),
        ({"min_rating": 5, "k_core_users": 1}, "no user has two interactions"),
    ],
)
def test_nothing_left_says_which_filter(
    log: str, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_data(DataRecipe(source="table", interactions=log, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reviews_follow_their_rows_through_buckets(
    make: Make, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.data.step._BUCKET_ROWS", 4)
    monkeypatch.setattr("genrec.data.rows.BLOCK_ROWS", 5)
    records = [
        {"user_id": n % 3, "item_id": n, "timestamp": -n, "review_text": f"&quot;{n}&quot;"}
        for n in range(17)
    ]
    path = str(write_jsonl("log.jsonl", [*records, records[3]]))
    dataset = make(source="table", interactions=path)
    assert dataset.has_reviews
    items = [dataset.item_ids[index] for index in dataset.interactions["item_index"]]
    assert dataset.reviews()["review_text"].to_list() == [f'"{item}"' for item in items]
    assert dataset.reviews()["review_title"].null_count() == 17
    assert not (tmp_path / "out" / "scratch").exists()
    without = make(source="table", interactions=path, reviews=False)
    assert not without.has_reviews
    assert without.reviews().is_empty()
    assert without.interactions.equals(dataset.interactions)


SYNTHETIC = {"n_items": 60, "n_users": 80}


def test_synthetic_keeps_its_whole_catalogue_and_its_oracle(make: Make) -> None:
    dataset = make(**SYNTHETIC)
    assert dataset.n_items == 60
    holdout, oracle = dataset.holdout("test"), dataset.oracle()
    assert oracle is not None
    assert len(oracle.item_index) == len(holdout.user_index) == dataset.n_users
    assert oracle.certified.all()
    for history, ranked in zip(holdout.histories, oracle.item_index, strict=True):
        answers = ranked[ranked >= 0]
        assert len(set(answers.tolist())) == len(answers)
        assert not set(history.tolist()) & set(answers.tolist())
    assert (oracle.scores[:, :-1] >= oracle.scores[:, 1:]).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"split": "temporal"}, "the split is temporal"),
        ({"k_core_items": 6}, "k_core"),
    ],
)
def test_oracle_is_left_out_where_it_does_not_hold(
    make: Make, caplog: pytest.LogCaptureFixture, values: dict[str, object], reason: str
) -> None:
    caplog.set_level(logging.INFO)
    dataset = make(**SYNTHETIC, **values)
    assert dataset.oracle() is None
    assert "the oracle is left out" in caplog.text
    assert reason in caplog.text


def test_oracle_of_a_sample_is_aligned(make: Make) -> None:
    dataset = make(**SYNTHETIC, users=10, max_history=2)
    oracle = dataset.oracle()
    assert oracle is not None
    assert len(oracle.item_index) == 10

"""Real data, where it is there; tests skip by name where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tests.data.conftest import Make

Find = Callable[[str], Path]


def test_beauty_has_its_published_size_and_split(make: Make, find_real_data: Find) -> None:
    folder = find_real_data("amazon14-beauty")
    dataset = make(source="table", path=str(folder), k_core_users=5, k_core_items=5)
    assert (dataset.n_users, dataset.n_items, dataset.interactions.height) == (
        22_363,
        12_101,
        198_502,
    )
    source = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "position")
    test = source.group_by("user_id", maintain_order=True).last()
    holdout = dataset.holdout("test")
    targets = [dataset.item_ids[target[0]] for target in holdout.targets]
    assert targets == test["item_id"].cast(pl.String).to_list()
    assert all(len(target) == 1 for target in holdout.targets)
    assert sum(map(len, holdout.histories)) == 198_502 - 22_363
    assert holdout.n_without_target == holdout.n_without_history == 0
    for name in ("title", "brand", "categories"):
        assert not dataset.items[name].str.contains(r"&\w+;|\p{Cc}").any()
    assert dataset.items["text"][0].startswith("title: OPI Nail Lacquer, Simmer and Shimmer")


def test_beauty_sample(make: Make, find_real_data: Find) -> None:
    folder = find_real_data("amazon14-beauty")
    dataset = make(source="table", path=str(folder), users=5_000, seed=1)
    assert dataset.n_users == 5_000
    assert len(dataset.holdout("test").targets) == 5_000
    assert set(dataset.interactions["item_index"]) == set(range(dataset.n_items))
    source = pl.read_parquet(folder / "interactions.parquet")
    lengths = source.group_by(pl.col("user_id").cast(pl.String)).len()
    ours = (
        dataset.interactions.group_by("user_index").len("ours").join(dataset.users, on="user_index")
    )
    joined = ours.join(lengths, on="user_id")
    assert (joined["ours"] == joined["len"]).all()


def test_giftcards_keep_reviews_ratings_and_prices(make: Make, find_real_data: Find) -> None:
    folder = find_real_data("amazon18-giftcards-reviews")
    dataset = make(source="table", path=str(folder))
    assert dataset.n_users == 458
    assert dataset.reviews()["review_text"].null_count() < 100
    assert dataset.interactions["rating"].null_count() == 0
    assert dataset.items["price"].drop_nulls().len() == 107
    assert dataset.interactions["timestamp"].null_count() == 0

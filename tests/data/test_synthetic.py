"""The built-in data: readable, the same everywhere, and its oracle is what it claims to be."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import polars as pl
import pytest

from genrec.data.synthetic import (
    MAX_CHOICES,
    MIN_CHOICES,
    ORACLE_LENGTH,
    ChoiceProcess,
    SyntheticData,
    make_catalogue,
    predict_next,
)
from genrec.data.synthetic_catalogue import BRANDS, CELLS, LEAVES, MAX_ITEMS
from genrec.errors import DataError

K = 10


@pytest.fixture(scope="module")
def made() -> SyntheticData:
    return make_catalogue()


@pytest.fixture(scope="module")
def histories(made: SyntheticData) -> list[list[int]]:
    """Each user's items as catalogue rows, oldest first."""
    place = {item_id: row for row, item_id in enumerate(made.items["item_id"])}
    grouped = made.interactions.group_by("user_id", maintain_order=True).agg("item_id")
    return [[place[item_id] for item_id in item_ids] for item_ids in grouped["item_id"].to_list()]


def digest_frames(data: SyntheticData) -> str:
    seal = hashlib.sha256()
    for frame in (data.items, data.interactions, data.oracle):
        seal.update(frame.write_json().encode())
    return seal.hexdigest()


def hit_rate(ranked: list[list[int]], histories: list[list[int]]) -> float:
    pairs = zip(ranked, histories, strict=True)
    return float(np.mean([history[-1] in row[:K] for row, history in pairs]))


def rank_scores(scores: np.ndarray, seen: list[int]) -> list[int]:
    """The K best rows; ties fall at random, as a recommender without knowledge would have them."""
    noise = np.random.default_rng(len(seen)).random(len(scores)) * 1e-9
    scores = scores + noise
    scores[seen] = -np.inf
    return np.argsort(-scores)[:K].tolist()


# ------------------------------------------------------------------------------ the same everywhere


def test_the_same_seed_makes_the_same_frames() -> None:
    first, second = (make_catalogue(n_items=200, n_users=100, seed=3) for _ in range(2))
    assert digest_frames(first) == digest_frames(second)
    assert digest_frames(first) != digest_frames(make_catalogue(n_items=200, n_users=100, seed=4))


def test_the_default_log_is_the_one_that_published_figures_speak_of(made: SyntheticData) -> None:
    """Pinned: a change here, or in a library's random numbers, changes every quickstart figure."""
    choices = "\n".join(map(" ".join, made.interactions.select("user_id", "item_id").iter_rows()))
    titles = "\n".join(made.items["title"])
    assert hashlib.sha256(choices.encode()).hexdigest()[:16] == "115904e7c0d95554"
    assert hashlib.sha256(titles.encode()).hexdigest()[:16] == "2cd8331270ece24f"


# ---------------------------------------------------------------------------------- the catalogue


def test_items_are_described_and_told_apart(made: SyntheticData) -> None:
    items = made.items
    assert items.columns == ["item_id", "title", "brand", "categories", "description", "price"]
    assert items.height == 1500
    assert items["item_id"].n_unique() == items["title"].n_unique() == items.height
    assert items.null_count().sum_horizontal().sum() == 0
    texts = items.select(pl.col(pl.String).str.strip_chars())
    assert texts.equals(items.select(pl.col(pl.String)))
    assert texts.select(pl.all().str.len_chars().min()).row(0) > (4, 20, 3, 20, 40)
    assert items["price"].is_between(5, 500).all()


def test_each_text_says_what_the_item_is(made: SyntheticData) -> None:
    for row, category, brand in zip(
        made.items.iter_rows(named=True), made.process.category, made.process.brand, strict=True
    ):
        leaf = LEAVES[category]
        assert row["categories"] == leaf.path
        assert row["title"].startswith(BRANDS[brand].name + " ")
        assert any(noun in row["title"] and noun in row["description"] for noun in leaf.nouns)
        assert any(slogan in row["description"] for slogan in BRANDS[brand].slogans)


def test_the_words_are_complete_and_used_once() -> None:
    assert len({leaf.path for leaf in LEAVES}) == len(LEAVES) == 40
    assert len({leaf.path.split(" > ")[0] for leaf in LEAVES}) == 8
    assert all(len(leaf.nouns) == len(set(leaf.nouns)) == 4 for leaf in LEAVES)
    assert all(len(leaf.features) == len(set(leaf.features)) == 4 for leaf in LEAVES)
    assert all(len(brand.models) == 8 and len(brand.slogans) == 3 for brand in BRANDS)
    models = [model for brand in BRANDS for model in brand.models]
    assert len(set(models)) == len(models)
    nouns = [noun for leaf in LEAVES for noun in leaf.nouns]
    assert len(set(nouns)) == len(nouns)
    assert len(set(CELLS)) == len(CELLS) == 200
    assert all(LEAVES[leaf].sphere == BRANDS[brand].sphere for leaf, brand in CELLS)


@pytest.mark.parametrize("n_items", [50, 333, 20_000])
def test_any_size_has_distinct_titles(n_items: int) -> None:
    made = make_catalogue(n_items=n_items, n_users=20, seed=1)
    assert made.items["title"].n_unique() == made.items["item_id"].n_unique() == n_items
    assert made.interactions.height >= 20 * MIN_CHOICES


@pytest.mark.parametrize("n_items", [49, MAX_ITEMS + 1])
def test_a_size_without_enough_titles_is_refused(n_items: int) -> None:
    with pytest.raises(DataError, match=f"n_items is {n_items}: .*from 50 to {MAX_ITEMS} items"):
        make_catalogue(n_items=n_items)


def test_a_log_without_users_is_refused() -> None:
    with pytest.raises(DataError, match=r"n_users is 0: .* at least 1 user"):
        make_catalogue(n_users=0)


# ---------------------------------------------------------------------------------------- the log


def test_each_user_chooses_a_few_items_once_and_in_time(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    log = made.interactions
    assert log.columns == ["user_id", "item_id", "timestamp"]
    assert log["timestamp"].dtype == pl.Float64
    lengths = [len(history) for history in histories]
    assert (len(histories), min(lengths), max(lengths)) == (4000, MIN_CHOICES, MAX_CHOICES)
    assert 30_000 < log.height < 40_000
    assert all(len(set(history)) == len(history) for history in histories)
    gap = log.select(pl.col("timestamp").diff().over("user_id").min()).item()
    assert gap >= 60


def test_users_keep_to_their_brands_and_routes(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    process = made.process
    sphere = np.array([brand.sphere for brand in BRANDS])[process.brand]
    favourites = []
    for history in histories:
        for side in (0, 1):
            brands = process.brand[[item for item in history if sphere[item] == side]]
            if len(brands) > 1:
                favourites.append(np.bincount(brands).max() / len(brands))
    assert np.mean(favourites) > 0.9
    steps = [pair for history in histories for pair in itertools.pairwise(history)]
    before, after = process.category[np.array(steps)].T
    follows = process.routes[before, after] > 0.5
    # 0.60 of the route, and its share of the .10 that goes anywhere, less what was chosen before.
    assert 0.58 < follows.mean() < 0.62


def test_a_catalogue_with_brands_that_lack_a_category_still_works() -> None:
    made = make_catalogue(n_items=60, n_users=50, seed=2)
    assert made.interactions["user_id"].n_unique() == 50
    sizes = made.oracle["item_ids"].list.len()
    lengths = made.interactions.group_by("user_id", maintain_order=True).len()["len"]
    assert sizes.to_list() == [min(ORACLE_LENGTH, 60 - length + 1) for length in lengths]


# ------------------------------------------------------------------------------------- the oracle


def test_the_oracle_ranks_unseen_items_by_falling_probability(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    assert (
        made.oracle["user_id"].to_list()
        == made.interactions["user_id"].unique(maintain_order=True).to_list()
    )
    item_ids = made.items["item_id"].to_list()
    for (_, ranked, probability), history in zip(made.oracle.iter_rows(), histories, strict=True):
        assert len(ranked) == len(set(ranked)) == len(probability) == ORACLE_LENGTH
        assert not {item_ids[item] for item in history[:-1]} & set(ranked)
        assert 0 < sum(probability) <= 1
        assert all(high >= low > 0 for high, low in itertools.pairwise(probability))


def test_the_oracle_hits_as_often_as_it_says(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    item_ids = made.items["item_id"].to_list()
    hits, chances = [], []
    for (_, ranked, probability), history in zip(made.oracle.iter_rows(), histories, strict=True):
        hits.append(item_ids[history[-1]] in ranked[:K])
        chances.append(sum(probability[:K]))
    expected, realised = np.mean(chances), np.mean(hits)
    margin = 4 * np.sqrt(expected * (1 - expected) / len(hits))
    assert 0.55 < expected < 0.7
    assert abs(expected - realised) < margin


def test_counting_items_is_far_from_the_oracle(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    """Popularity, and Markov over the last five items, from the choices before the last two."""
    n_items = made.items.height
    bought = np.zeros(n_items)
    follows = np.zeros((n_items, n_items))
    for history in histories:
        past = history[:-2]
        bought[past] += 1
        for lag in (1, 2, 3):
            np.add.at(follows, (past[:-lag], past[lag:]), 0.5 ** (lag - 1))
    follows /= follows.sum(axis=1, keepdims=True) + 1
    popular, markov = [], []
    for history in histories:
        seen = history[:-1]
        recent = seen[::-1][:5]
        weights = 1 / np.arange(1, len(recent) + 1)
        popular.append(rank_scores(bought, seen))
        markov.append(rank_scores(weights @ follows[recent], seen))
    assert hit_rate(popular, histories) < 0.05
    assert 0.1 < hit_rate(markov, histories) < 0.2


def make_tiny_process() -> ChoiceProcess:
    """Seven items, three categories, four brands in two spheres; one brand lacks a category."""
    rng = np.random.default_rng(5)
    tastes = np.array([[0.9, 0.1, 0.2, 0.8], [0.3, 0.7, 0.6, 0.4], [0.5, 0.5, 0.05, 0.95]])
    routes = rng.random((3, 3))
    return ChoiceProcess(
        category=np.array([0, 0, 1, 1, 2, 2, 0]),
        brand=np.array([0, 1, 0, 0, 2, 3, 1]),
        appeal=rng.random(7),
        routes=routes / routes.sum(axis=1, keepdims=True),
        tastes=tastes,
        prior=np.array([0.5, 0.3, 0.2]),
    )


def weigh_choice(process: ChoiceProcess, taste: int, history: tuple[int, ...], item: int) -> float:
    """The process as the module's docstring says it, for one item, in plain numbers."""

    def weigh(candidate: int) -> float:
        if candidate in history:
            return 0.0
        category = process.category[candidate]
        route = process.routes[process.category[history[-1]], category] if history else 1.0
        liking = process.tastes[taste, process.brand[candidate]]
        return float(route * liking * process.appeal[candidate])

    return weigh(item) / sum(weigh(candidate) for candidate in range(len(process.category)))


def test_the_prediction_is_bayes_rule_by_brute_force() -> None:
    process = make_tiny_process()
    for history in [(), (3,), (0, 4), (5, 2, 6), (6, 1, 0, 5, 4, 2)]:
        joint = process.prior.copy()
        for taste, step in itertools.product(range(len(joint)), range(len(history))):
            joint[taste] *= weigh_choice(process, taste, history[:step], history[step])
        wanted = np.zeros(7)
        for taste, item in itertools.product(range(len(joint)), range(7)):
            wanted[item] += joint[taste] * weigh_choice(process, taste, history, item)
        row = np.full((1, 6), -1, dtype=np.int64)
        row[0, : len(history)] = history
        np.testing.assert_allclose(predict_next(process, row)[0], wanted / joint.sum(), atol=1e-12)


def test_a_prediction_does_not_depend_on_its_neighbours() -> None:
    process = make_tiny_process()
    rows = np.array([[3, -1, -1], [5, 2, 6], [0, 4, -1]])
    together = predict_next(process, rows)
    alone = [
        predict_next(process, row[None, :count])[0]
        for row, count in zip(rows, (1, 3, 2), strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-15)


def test_a_prediction_is_a_distribution_over_unseen_items(made: SyntheticData) -> None:
    rows = np.array([[4, 8, 15, 16, 23, 42], [7, 9, -1, -1, -1, -1]])
    predicted = predict_next(made.process, rows)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-9)
    assert (predicted[0, rows[0]] == 0).all()
    assert (predicted[1, rows[1, :2]] == 0).all()
    assert (predicted > 0).sum(axis=1).tolist() == [1500 - 6, 1500 - 2]


def test_the_oracle_is_the_prediction_before_the_last_choice(
    made: SyntheticData, histories: list[list[int]]
) -> None:
    history = histories[17]
    predicted = predict_next(made.process, np.array([history[:-1]]))[0]
    best = np.argsort(-predicted)[:ORACLE_LENGTH]
    _, ranked, probability = made.oracle.row(17)
    assert ranked == made.items["item_id"][best].to_list()
    np.testing.assert_allclose(probability, predicted[best], rtol=1e-12)

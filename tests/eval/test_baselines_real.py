"""The counting baselines' published figures on real data, which is not part of the project."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.eval.baselines import Markov, Popularity
from genrec.eval.metrics import Metric, score_users

METRICS = [Metric.parse(text) for text in ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sequences(find_real_data):
    folder = find_real_data("amazon14-beauty")
    rows = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "position")
    items = rows["item_id"].cast(pl.Int64).to_numpy()
    _, first = np.unique(rows["user_id"].cast(pl.Int64).to_numpy(), return_index=True)
    return np.split(items, first[1:]), int(items.max()) + 1


def evaluate(fit, sequences, n_last, **values):
    """Metrics of a baseline that counts all but each user's last `n_last` items."""
    everyone, n_items = sequences
    system = fit([sequence[:-n_last] for sequence in everyone], n_items, **values)
    ranked = system.rank_items([sequence[:-1] for sequence in everyone], 10)
    targets = np.array([sequence[-1:] for sequence in everyone])
    scores = score_users(ranked.item_index, targets, METRICS)
    return [float(scores[metric].mean()) for metric in METRICS]


@pytest.mark.parametrize(
    ("n_last", "values", "expected"),
    [
        pytest.param(2, {}, (0.0586, 0.0439, 0.0789, 0.0504), id="3-step"),
        pytest.param(1, {}, (0.0675, 0.0510, 0.0896, 0.0581), id="3-step-with-valid"),
        pytest.param(
            2,
            {"window": 1, "query_weights": [1.0]},
            (0.0521, 0.0392, 0.0673, 0.0442),
            id="last-item",
        ),
        pytest.param(
            2, {"ties": "random"}, (0.0586, 0.0439, 0.0789, 0.0504), id="3-step-random-ties"
        ),
    ],
)
def test_markov_reproduces_its_figures_on_beauty(sequences, n_last, values, expected):
    found = evaluate(Markov.fit, sequences, n_last, **values)
    assert found == pytest.approx(expected, abs=0.001)


def test_popularity_reproduces_its_figures_on_beauty(sequences):
    found = evaluate(Popularity.fit, sequences, 1)
    assert found == pytest.approx((0.0077, 0.0042, 0.0137, 0.0061), abs=0.0005)

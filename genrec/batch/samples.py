"""A few users of a finished run, answered for the screen.

Owns which users are shown. Knows neither model nor data beyond their public faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from genrec.batch.run import Request
from genrec.data.dataset import load_dataset
from genrec.recommender import Recommender
from genrec.types import History, Recommendation


def answer_histories(
    recommender: Recommender, histories: Sequence[History], request: Request
) -> Iterator[tuple[History, list[str], list[Recommendation]]]:
    """Each history with the titles of its items and its answers."""
    for history in histories:
        answers = recommender.recommend(
            history.item_ids, request.k, request.exclude_seen, request.unknown, history.user_id
        )
        yield history, recommender.find_titles(history.item_ids), answers


def recommend_samples(
    run: Path, *, users: int = 3, k: int = 5
) -> list[tuple[History, list[str], list[Recommendation]]]:
    """For the first test users of a finished run: history, its titles, recommendations."""
    dataset = load_dataset(run / "data")
    holdout = dataset.holdout("test")
    user_ids = dataset.users.sort("user_index")["user_id"].to_list()
    histories = [
        History(user_ids[user], tuple(dataset.item_ids[item] for item in items))
        for user, items in zip(holdout.user_index[:users], holdout.histories[:users], strict=True)
    ]
    recommender = Recommender.from_pretrained(run / "model")
    return list(answer_histories(recommender, histories, Request(k=k)))

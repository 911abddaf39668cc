"""A small data set with hostile titles, a model directory without weights, and its stand-in."""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from genrec.artifact import write_artifact
from genrec.data.dataset import load_dataset
from genrec.data.recipe import DataRecipe
from genrec.recipe import Recipe
from genrec.types import RankedItems

N_ITEMS = 30
N_USERS = 40
HOSTILE = (
    "<script>alert('title')</script>",
    '"><img src="http://evil.example/x.png" onerror="alert(1)">',
    "{{ 7 * 7 }} {% raw %} & Co.",
)


class ModelRecipe(Recipe):
    """Stands in for the recipe of the train step."""

    epochs: int = 2


def write_data(path, *, n_users=N_USERS, n_items=N_ITEMS, oracle=True, titles=HOSTILE):
    """A data artefact: users walk from an item to the next, most of the time."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(n_users):
        start, length = rng.integers(n_items), rng.integers(4, 8)
        for position in range(length):
            item = (start + position) % n_items
            part = {length - 1: "test", length - 2: "valid"}.get(position, "train")
            rows.append((user, int(item), position, part))
    names = [*titles, *(f"Item number {item}" for item in range(len(titles), n_items - 1)), ""]
    counts = [{"stage": "read", "users": n_users, "items": n_items, "interactions": len(rows)}]
    schema = ["user_index", "item_index", "position", "split"]
    log = pl.DataFrame(rows, schema=schema, orient="row")
    with write_artifact(path, step="data", recipe=DataRecipe(path="/somewhere/tiny")) as work:
        pl.DataFrame(
            {
                "item_index": range(n_items),
                "item_id": [f"id-{item}" for item in range(n_items)],
                "title": names,
            }
        ).write_parquet(work.path / "items.parquet")
        pl.DataFrame(
            {"user_index": range(n_users), "user_id": [f"u{user}" for user in range(n_users)]}
        ).write_parquet(work.path / "users.parquet")
        log.write_parquet(work.path / "interactions.parquet")
        if oracle:
            _write_oracle(work.path / "oracle.parquet", log, n_items)
        work.facts["counts"] = counts
    return work.artifact


def _write_oracle(path, log, n_items):
    rows = []
    for user, items in log.group_by("user_index", maintain_order=True).agg("item_index").rows():
        target, seen = items[-1], set(items[:-1])
        others = [item for item in range(n_items) if item not in seen | {target}]
        ranked = [target, *others][:12]
        rows.append((user, ranked, [0.5 / (place + 1) for place in range(len(ranked))]))
    pl.DataFrame(
        rows, schema=["user_index", "item_index", "probability"], orient="row"
    ).write_parquet(path)


def write_model(path, data, *, item_ids=None, quality=True):
    """A model artefact with the files that the report reads, and no weights."""
    dataset = load_dataset(data)
    item_ids = list(dataset.item_ids) if item_ids is None else item_ids
    codes = [[item % 4, item // 4 % 4, item // 16] for item in range(len(item_ids))]
    log = [{"step": step, "epoch": step / 10, "loss": 5 / step} for step in range(1, 20)]
    log += [{"step": 10, "eval_loss": 0.7}, {"step": 20, "eval_loss": 0.4}, {"step": 20, "note": 1}]
    inputs = {"data": dataset.artifact}
    with write_artifact(path, step="train", recipe=ModelRecipe(), inputs=inputs) as work:
        pl.DataFrame(
            {"item_index": range(len(item_ids)), "item_id": item_ids, "codes": codes}
        ).write_parquet(work.path / "item_index.parquet")
        lines = [json.dumps(line) + "\n" for line in log]
        (work.path / "training.jsonl").write_text("".join(lines), encoding="utf-8")
        (work.path / "genrec.json").write_text('{"schema": 1, "codebook_sizes": [4, 4, 8]}')
        if quality:
            levels = [{"level": letter, "used": 4, "perplexity": 3.9} for letter in "abc"]
            (work.path / "quality.json").write_text(
                json.dumps({"collision_rate": {"before": 0.25, "after": 0.0}, "levels": levels})
            )
        work.facts["parameters"] = 1234
    return work.artifact


class NextItem:
    """Stands in for a trained model: ranks the items after the latest one, and they are right."""

    name = "genrec"

    def __init__(self, n_items=N_ITEMS, name="genrec"):
        self.n_items = n_items
        self.name = name
        self.batch_sizes = []

    def rank_items(self, histories, k, *, exclude_seen=True):
        self.batch_sizes.append(len(histories))
        item_index = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for row, history in enumerate(histories):
            order = (history[-1] + 1 + np.arange(self.n_items)) % self.n_items
            if exclude_seen:
                order = order[~np.isin(order, history)]
            item_index[row, : len(order[:k])] = order[:k]
            scores[row, : len(order[:k])] = -np.arange(len(order[:k]))
        return RankedItems(item_index, scores, np.ones(len(histories), dtype=np.bool_))


def fit_next_item(sequences, n_items, *, seed=0):
    """A baseline as a recipe names it: my_package.module:name."""
    assert sequences
    assert seed == 0
    return NextItem(n_items, name="next-item")

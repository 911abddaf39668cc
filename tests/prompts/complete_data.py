"""A small data set with every column that prompts can use, made by the data step itself."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from genrec.artifact import write_artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.recipe import Recipe

from .conftest import sid_of

N_ITEMS, N_USERS, N_CHOICES = 24, 14, 7
LOCALES = ("UK", "DE", "JP", "ES", "FR", "IT")
EXTRA = ("domain", "locale", "intention", "query")
HELD_WORD = "zyxheldoutword"
COLOURS = ("amber", "beige", "coral", "denim", "ebony")


def make_complete(root: Path, *, extra: tuple[str, ...] = EXTRA, said: bool = True) -> Dataset:
    """The data artefact; held-out reviews hold a word that nothing else does.

    Args:
        root: an empty folder.
        extra: the items' columns beside ours; only the first half of the items have an intention
            and a query.
        said: whether there are ratings and reviews.
    """
    source = root / "source"
    source.mkdir(parents=True)
    _make_items(extra).write_parquet(source / "items.parquet")
    choices = _make_choices()
    kept = choices if said else choices.drop("rating", "review_text", "review_title")
    kept.write_parquet(source / "interactions.parquet")
    recipe = DataRecipe(
        source="table", path=str(source), item_columns={name: name for name in extra}
    )
    make_data(recipe, root / "data")
    return load_dataset(root / "data")


def _make_items(extra: tuple[str, ...]) -> pl.DataFrame:
    items = range(N_ITEMS)
    half = N_ITEMS // 2
    columns = {
        "item_id": [f"i{item:02}" for item in items],
        "title": [f"{COLOURS[item % 5]} object {chr(97 + item) * 4}" for item in items],
        "brand": [("Acme", "Zed", "Bolt")[item % 3] for item in items],
        "categories": [f"Store > Aisle {'xyz'[item % 3] * 3}" for item in items],
        "description": [f"made of {('steel', 'cotton')[item % 2]}" for item in items],
        "domain": [("Lamps", "Shoes")[item % 2] for item in items],
        "locale": [LOCALES[item % 6] for item in items],
        "intention": [f"wish number {item}" if item < half else None for item in items],
        "query": [f"find number {item}" if item < half else None for item in items],
    }
    return pl.DataFrame(columns).drop(name for name in EXTRA if name not in extra)


def find_walk(user: int) -> list[int]:
    """Everything a user chose: two of the first pairs, so that items have frequent followers."""
    start = user % 3 * 2
    rest = [(user * 5 + step * 7) % N_ITEMS for step in range(N_ITEMS)]
    walk = [start, start + 1, *(item for item in rest if item not in (start, start + 1))]
    return list(dict.fromkeys(walk))[:N_CHOICES]


def _make_choices() -> pl.DataFrame:
    rows = []
    for user in range(N_USERS):
        for place, item in enumerate(find_walk(user)):
            held = place >= N_CHOICES - 2
            word = HELD_WORD if held else f"word{chr(97 + user)}{chr(97 + place)}"
            rows.append(
                {
                    "user_id": f"u{user:02}",
                    "item_id": f"i{item:02}",
                    "timestamp": place,
                    "rating": float(1 + (user + place) % 5),
                    "review_text": f"Sturdy {word} and quite useful",
                    "review_title": f"Opinion {word}",
                }
            )
    return pl.DataFrame(rows)


def write_ids(root: Path, ids: list[str], *, users: bool = False) -> Path:
    """A tokenizer artefact's part that prompts reads, of items or of users."""
    out = root / ("users" if users else "tokenizer")
    sids = [sid_of(place) for place in range(len(ids))]
    if users:
        sids = [sid.replace("<", "<u") for sid in sids]
    with write_artifact(out, step="tokenize", recipe=Recipe()) as work:
        table = pl.DataFrame({"item_id": ids, "sid": sids})
        table.write_parquet(work.path / "codes.parquet")
        config = {"codebook_sizes": [16, 16, 64]}
        (work.path / "config.json").write_text(json.dumps(config))
    return out

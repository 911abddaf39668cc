"""The sources by name.

Owns the table from a recipe's `source` to the function that reads it, and what such a function
gives. A plug-in is any `my_package.module:function` of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from genrec.data import amazon, movielens, recbole, table
from genrec.data.catalogue import item_schema, read_catalogue
from genrec.data.faults import Faults, raise_faults
from genrec.data.layout import Layout, map_layout
from genrec.data.log import Log, read_log, read_reviews
from genrec.data.recipe import DataRecipe
from genrec.data.synthetic import make_catalogue
from genrec.recipe import find_choice
from genrec.types import IndexArray

ReadReviews = Callable[[IndexArray], Iterator[pl.DataFrame]]


@dataclass(frozen=True, slots=True)
class RawData:
    """What a source gives: the log, the described items, and how to come by the review texts.

    `oracle` holds user_id, item_ids and probability where the best possible ranking is known.
    """

    log: Log
    catalogue: pl.DataFrame
    keeps_cold_items: bool = False
    files: tuple[Path, ...] = ()
    reviews: ReadReviews | None = None
    oracle: pl.DataFrame | None = field(default=None)


class Source(Protocol):
    """A function that reads the data that a recipe names."""

    def __call__(self, recipe: DataRecipe) -> RawData:
        """Read it all, or raise one DataError that lists every fault."""
        ...


def read_source(recipe: DataRecipe) -> RawData:
    """The data of the recipe's source.

    Raises:
        RecipeError: no such source.
        DataError: every fault of every file, in one message.
    """
    return find_choice("source", recipe.source, SOURCES)(recipe)


def read_layout(layout: Layout, recipe: DataRecipe) -> RawData:
    """The data in files of a known layout, the recipe's column mapping laid over it.

    Raises:
        DataError: every fault of every file, in one message.
    """
    layout = map_layout(layout, recipe.columns, recipe.item_columns)
    gathered = [Faults(layout.interactions.path)]
    log = read_log(layout, gathered[0])
    faults = None
    if layout.items is not None:
        faults = Faults(layout.items.path)
        gathered.append(faults)
    wanted = None if recipe.cold_items else set(log.item_ids)
    catalogue = read_catalogue(layout, wanted, faults)
    raise_faults(gathered)
    return RawData(
        log,
        catalogue,
        files=tuple(faults.path for faults in gathered),
        reviews=(lambda lines: read_reviews(layout, lines)) if "review" in log.rows else None,
    )


def frames_data(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    *,
    oracle: pl.DataFrame | None = None,
    keeps_cold_items: bool = False,
) -> RawData:
    """The data in frames that are already clean; the way in for generated data and plug-ins.

    Args:
        interactions: user_id and item_id (str), timestamp (f64 seconds) and rating where known; in
            the order of time.
        items: item_id and any of title, brand, categories, description, price, and more.
        oracle: user_id, item_ids, probability; the best ranking for each user's last interaction.
        keeps_cold_items: whether items that nobody chose belong to the catalogue.
    """
    users = interactions["user_id"].unique(maintain_order=True)
    chosen = interactions["item_id"].unique(maintain_order=True)
    known = [name for name in ("timestamp", "rating") if name in interactions.columns]
    rows = interactions.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("line"),
        pl.col("user_id").replace_strict(users, range(len(users)), return_dtype=pl.UInt32),
        pl.col("item_id").replace_strict(chosen, range(len(chosen)), return_dtype=pl.UInt32),
        pl.col(known).cast(pl.Float64),
    ).rename({"user_id": "user", "item_id": "item"})
    log = Log(rows, users.to_list(), chosen.to_list())
    schema = item_schema([name for name in items.columns if name not in item_schema()])
    missing = [name for name in schema if name not in items.columns]
    catalogue = items.with_columns(pl.lit(None).alias(name) for name in missing).select(
        pl.col(name).cast(kind) if kind == pl.Float64 else pl.col(name).cast(kind).fill_null("")
        for name, kind in schema.items()
    )
    return RawData(log, catalogue, keeps_cold_items, oracle=oracle)


def _files_source(find_layout: Callable[[DataRecipe], Layout]) -> Source:
    return lambda recipe: read_layout(find_layout(recipe), recipe)


def _read_synthetic(recipe: DataRecipe) -> RawData:
    made = make_catalogue(n_items=recipe.n_items, n_users=recipe.n_users, seed=recipe.seed)
    return frames_data(made.interactions, made.items, oracle=made.oracle, keeps_cold_items=True)


SOURCES: Mapping[str, Source] = {
    "amazon2014": _files_source(amazon.find_2014),
    "amazon2018": _files_source(amazon.find_2018),
    "amazon2023": _files_source(amazon.find_2023),
    "movielens": _files_source(movielens.find_layout),
    "recbole": _files_source(recbole.find_layout),
    "table": _files_source(table.find_layout),
    "synthetic": _read_synthetic,
}

"""The step `data`: raw files in, the data artefact out.

Owns the order of the stages and the files of the artefact. Knows neither formats nor what a filter
does. Everything is read and filtered before the first file is written.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.artifact import Artifact, write_artifact
from genrec.data.catalogue import item_schema, render_texts
from genrec.data.filters import (
    Counts,
    drop_duplicates,
    drop_items,
    drop_low_ratings,
    drop_repeated_pairs,
    keep_core,
    sample_users,
)
from genrec.data.log import REVIEW_COLUMNS
from genrec.data.recipe import DataRecipe
from genrec.data.sources import RawData, ReadReviews, read_source
from genrec.data.split import cap_history, mark_split, order_rows, time_order
from genrec.data.text import clean_series
from genrec.errors import DataError
from genrec.manifest import hash_file, write_json
from genrec.types import IndexArray

ORACLE_LENGTH = 50
_BUCKET_ROWS = 250_000
_BLOCKS_AT_ONCE = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tables:
    """The artefact's tables in memory; interactions still have their line numbers."""

    items: pl.DataFrame
    users: pl.DataFrame
    interactions: pl.DataFrame
    oracle: pl.DataFrame | None


def make_data(recipe: DataRecipe, out: str | Path) -> Artifact:
    """The data artefact that a recipe describes: items, users, interactions with their split.

    Args:
        recipe: source, filters and split.
        out: the artefact's directory.

    Raises:
        RecipeError: an unknown source, or a path with an unset variable.
        DataError: faults in the files, all in one message, or nothing left after a filter.
        ArtifactError: `out` cannot be written.
    """
    raw = read_source(recipe)
    counts = Counts()
    rows = split_rows(filter_rows(raw, recipe, counts), recipe, counts)
    tables = build_tables(raw, rows, recipe, counts)
    with write_artifact(out, step="data", recipe=recipe) as work:
        tables.items.write_parquet(work.path / "items.parquet")
        tables.users.write_parquet(work.path / "users.parquet")
        write_interactions(tables.interactions, raw, recipe, work.path)
        if tables.oracle is not None:
            tables.oracle.write_parquet(work.path / "oracle.parquet")
        write_json(work.path / "counts.json", counts.stages)
        work.facts.update(describe_tables(raw, tables, counts))
    return work.artifact


def filter_rows(raw: RawData, recipe: DataRecipe, counts: Counts) -> pl.DataFrame:
    """The log's rows after the recipe's filters, in file order.

    Raises:
        DataError: a filter leaves nothing; the message says which and what to change.
    """
    rows = raw.log.rows
    counts.record("read", rows, "the source holds none")
    described = np.isin(raw.log.item_ids, raw.catalogue["item_id"].to_list())
    if not described.all():
        _log.info(
            "%s of %s chosen items have no metadata; policy: %s",
            *(f"{(~described).sum():,}", f"{len(described):,}", recipe.items_without_metadata),
        )
    if recipe.items_without_metadata == "drop":
        rows = drop_items(rows, described.tolist())
        way_out = "do the ids of both files match? set items_without_metadata: keep, or `items`"
        counts.record("described", rows, way_out)
    if recipe.deduplicate != "none":
        rows = drop_duplicates(rows)
        if recipe.deduplicate == "pairs":
            rows = drop_repeated_pairs(rows, time_order(rows.columns, recipe.split))
        counts.record("deduplicate", rows)
    if recipe.min_rating is not None:
        rows = drop_low_ratings(rows, recipe.min_rating)
        counts.record("min_rating", rows, f"lower min_rating (now {recipe.min_rating:g})")
    if max(recipe.k_core_users, recipe.k_core_items) > 1:
        rows = keep_core(rows, recipe.k_core_users, recipe.k_core_items)
        now = f"now {recipe.k_core_users} and {recipe.k_core_items}"
        counts.record("k_core", rows, f"lower k_core_users and k_core_items ({now})")
    if recipe.users is not None:
        rows = sample_users(rows, recipe.users, raw.log.user_ids, recipe.seed)
        counts.record("sample", rows)
    return rows


def split_rows(rows: pl.DataFrame, recipe: DataRecipe, counts: Counts) -> pl.DataFrame:
    """The rows by user and time, each with its place and its part of the split.

    Raises:
        DataError: the split cannot be made of these rows, or nobody has a test interaction.
    """
    marked = mark_split(order_rows(rows, recipe.split), recipe)
    kept = cap_history(marked, recipe.max_history)
    if recipe.max_history is not None:
        counts.record("max_history", kept)
    parts = dict(kept["split"].value_counts().iter_rows())
    if not parts.get("test"):
        raise DataError(
            "no user has two interactions, so there is nothing to test on; "
            "check the user_id column, or lower the filters"
        )
    _log.info(
        "split %s: %s", recipe.split, ", ".join(f"{p} {n:,}" for p, n in sorted(parts.items()))
    )
    return kept


def build_tables(raw: RawData, rows: pl.DataFrame, recipe: DataRecipe, counts: Counts) -> Tables:
    """The artefact's tables: items and users numbered densely, the log in those numbers.

    Items are in the order of the metadata, then those without metadata by first appearance; users
    are in the order of first appearance in the log.
    """
    items = _number_items(raw, rows, recipe)
    item_index = {item_id: index for index, item_id in enumerate(items["item_id"])}
    item_of = np.array([item_index.get(item_id, -1) for item_id in raw.log.item_ids])
    kept_users = np.unique(rows["user"].to_numpy())
    users = pl.DataFrame(
        {
            "user_index": np.arange(len(kept_users)),
            "user_id": [raw.log.user_ids[user] for user in kept_users],
        }
    )
    nothing = pl.lit(None, dtype=pl.Float64)
    interactions = rows.select(
        pl.Series("user_index", np.searchsorted(kept_users, rows["user"].to_numpy())),
        pl.Series("item_index", item_of[rows["item"].to_numpy()]),
        "position",
        "split",
        *(
            pl.col(name) if name in rows.columns else nothing.alias(name)
            for name in ("timestamp", "rating")
        ),
        "line",
    )
    oracle = _map_oracle(raw, users, item_index, recipe, counts)
    return Tables(items, users, interactions, oracle)


def _number_items(raw: RawData, rows: pl.DataFrame, recipe: DataRecipe) -> pl.DataFrame:
    chosen = [raw.log.item_ids[item] for item in rows["item"].unique().sort()]
    described = raw.catalogue
    cold = raw.keeps_cold_items if recipe.cold_items is None else recipe.cold_items
    if not cold:
        described = described.filter(pl.col("item_id").is_in(pl.Series(chosen).implode()))
    known = set(described["item_id"])
    bare = [item_id for item_id in chosen if item_id not in known]
    extra = [name for name in described.columns if name not in item_schema()]
    empty = pl.DataFrame({"item_id": bare}, schema={"item_id": pl.String})
    items = pl.concat([described, empty], how="diagonal").with_columns(
        pl.col([name for name in item_schema(extra) if name != "price"]).fill_null("")
    )
    texts = render_texts(items, recipe.text_fields, recipe.max_field_chars)
    n_empty = int((texts == "").sum())
    if n_empty:
        _log.info("%s of %s items have no text", f"{n_empty:,}", f"{items.height:,}")
    indexed = items.with_row_index("item_index").with_columns(pl.col("item_index").cast(pl.Int64))
    return indexed.with_columns(texts)


def _map_oracle(
    raw: RawData,
    users: pl.DataFrame,
    item_index: dict[str, int],
    recipe: DataRecipe,
    counts: Counts,
) -> pl.DataFrame | None:
    """The oracle in item indices, where the log is as it was when the oracle was computed."""
    if raw.oracle is None:
        return None
    filtered = [stage["stage"] for stage in counts.stages[1:] if _took_rows(stage, counts)]
    if recipe.split != "leave-last-out" or filtered:
        reason = f"the split is {recipe.split}" if not filtered else f"{filtered} took interactions"
        _log.info("the oracle is left out: it holds for each user's last choice, and %s", reason)
        return None
    mapped = users.join(raw.oracle, on="user_id", how="inner", maintain_order="left")
    ranked = [[item_index[i] for i in ids[:ORACLE_LENGTH]] for ids in mapped["item_ids"]]
    return mapped.select(
        "user_index",
        pl.Series("item_index", ranked, dtype=pl.List(pl.Int64)),
        pl.col("probability").list.head(ORACLE_LENGTH).cast(pl.List(pl.Float64)),
    )


def _took_rows(stage: dict[str, str | int], counts: Counts) -> bool:
    """Whether a stage changed some user's sequence; a sample and a cap leave the last choice."""
    before = counts.stages[counts.stages.index(stage) - 1]
    return (
        stage["stage"] not in {"sample", "max_history"}
        and stage["interactions"] != before["interactions"]
    )


def write_interactions(
    interactions: pl.DataFrame, raw: RawData, recipe: DataRecipe, folder: Path
) -> None:
    """Write `interactions.parquet`, with the review texts where there are any."""
    out = folder / "interactions.parquet"
    if raw.reviews is None or not recipe.reviews:
        interactions.drop("line").write_parquet(out)
        return
    scratch = folder / "scratch"
    scratch.mkdir()
    parts = list(_write_parts(interactions, raw.reviews, scratch))
    pl.scan_ipc(parts).sink_parquet(out)
    shutil.rmtree(scratch)


def _write_parts(interactions: pl.DataFrame, reviews: ReadReviews, scratch: Path) -> Iterator[Path]:
    """The interactions with their reviews, in files of consecutive rows.

    The reviews come in file order and are wanted in the order of users, and may not all fit into
    memory: they are dealt out into one bucket for each range of rows first, and joined there.
    """
    lines: IndexArray = interactions["line"].to_numpy()
    by_line = np.argsort(lines)
    sorted_lines = lines[by_line]
    buckets: dict[int, list[Path]] = {}
    for number, block in enumerate(_gather_blocks(reviews(sorted_lines))):
        row_of = by_line[np.searchsorted(sorted_lines, block["line"].to_numpy())]
        marked = block.with_columns(bucket=pl.Series(row_of // _BUCKET_ROWS))
        for part in marked.partition_by("bucket"):
            bucket = int(part["bucket"][0])
            path = scratch / f"reviews-{bucket}-{number}.arrow"
            part.drop("bucket").write_ipc(path)
            buckets.setdefault(bucket, []).append(path)
    for bucket, paths in sorted(buckets.items()):
        texts = pl.concat(pl.read_ipc(path) for path in paths)
        rows = interactions.slice(bucket * _BUCKET_ROWS, _BUCKET_ROWS)
        clean = texts.with_columns(clean_series(texts[name]) for name in REVIEW_COLUMNS)
        joined = rows.join(clean, on="line", how="left", maintain_order="left").drop("line")
        part_path = scratch / f"part-{bucket:06}.arrow"
        joined.write_ipc(part_path)
        for path in paths:
            path.unlink()
        yield part_path


def _gather_blocks(blocks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Fewer, larger blocks, so that a bucket is not dealt out into thousands of files."""
    while gathered := list(itertools.islice(blocks, _BLOCKS_AT_ONCE)):
        yield pl.concat(gathered)


def describe_tables(raw: RawData, tables: Tables, counts: Counts) -> dict[str, Any]:
    """The facts that the manifest keeps: sizes, counts, and the files that were read."""
    return {
        "n_users": tables.users.height,
        "n_items": tables.items.height,
        "n_interactions": tables.interactions.height,
        "items_without_text": int((tables.items["text"] == "").sum()),
        "split": dict(sorted(tables.interactions["split"].value_counts().iter_rows())),
        "counts": counts.stages,
        "oracle": tables.oracle is not None,
        "files": [
            {"path": str(p), "size_bytes": p.stat().st_size, "sha256": hash_file(p)}
            for p in raw.files
        ],
    }

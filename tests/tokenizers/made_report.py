"""Data, embeddings, tokenizers and index files for the report, all made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifact import load_artifact, write_artifact
from genrec.recipe import Recipe
from genrec.tokenizers.measures.quality import Vocabulary, measure_quality
from genrec.tokenizers.quantizers.quantizer import build_quantizer
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import FitResult, make_tokenizer, write_result
from genrec.tokenizers.tokenizer_files import Fitted
from genrec.tokenizers.uniqueness.assign import Assignment
from genrec.tokenizers.vectors import write_shards

from .conftest import plant_clusters

N_ITEMS, N_CLUSTERS = 120, 6
KINDS = ("Soap", "Hair", "Nails", "Skin", "Scent", "Tools")
HOSTILE = "<script>alert('x')</script> {{ 7*7 }} $\\frac{a}$ <a_1>"
RECIPE = TokenizeRecipe.model_validate(
    {"quantizer": "rqkmeans", "codebook_sizes": [6, 6, 6], "rqkmeans": {"iterations": 5}}
)


def name_items(n_items: int = N_ITEMS) -> list[str]:
    return [f"item-{row}" for row in range(n_items)]


def write_data(out: Path, n_items: int = N_ITEMS, *, categories: bool = True) -> Path:
    """A data artefact whose item i has the category of cluster i % 6; item 0's title is hostile."""
    titles = [HOSTILE, None, *(f"Title {row}" for row in range(2, n_items))][:n_items]
    kinds = [f"Shop > {KINDS[row % N_CLUSTERS]} > {row % 2}" for row in range(n_items)]
    columns = {"item_index": range(n_items), "item_id": name_items(n_items), "title": titles}
    if categories:
        columns["categories"] = kinds
    rows = [
        (user, (user * 7 + step * step) % n_items, step, "test" if step == 4 else "train")
        for user in range(30)
        for step in range(5)
    ]
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        pl.DataFrame(columns).write_parquet(work.path / "items.parquet")
        pl.DataFrame(
            {"user_index": range(30), "user_id": [f"u{user}" for user in range(30)]}
        ).write_parquet(work.path / "users.parquet")
        pl.DataFrame(
            rows, schema=["user_index", "item_index", "position", "split"], orient="row"
        ).write_parquet(work.path / "interactions.parquet")
    return out


def write_vectors(
    out: Path, vectors: np.ndarray, ids: Sequence[str] | None = None, data: Path | None = None
) -> Path:
    inputs = {} if data is None else {"data": load_artifact(data)}
    with write_artifact(out, step="embed", recipe=EmbedRecipe(), inputs=inputs) as work:
        write_shards([vectors], work.path)
        ids = name_items(len(vectors)) if ids is None else list(ids)
        pl.DataFrame({"item_id": ids}).write_parquet(work.path / "items.parquet")
    return out


def write_all(folder: Path) -> Path:
    """`data`, `embeddings` and `tokenizer` of 120 items in 6 clusters; the tokenizer's folder."""
    data = write_data(folder / "data")
    vectors = plant_clusters(N_ITEMS, N_CLUSTERS)
    embeddings = write_vectors(folder / "embeddings", vectors, data=data)
    make_tokenizer(RECIPE, embeddings, folder / "tokenizer")
    return folder / "tokenizer"


def write_imported(out: Path, codes: np.ndarray, sizes: Sequence[int]) -> Path:
    """A tokenizer artefact with these codes and no quantizer."""
    recipe = TokenizeRecipe(quantizer="imported", codebook_sizes=tuple(sizes))
    still = np.zeros(len(codes))
    assignment = Assignment(codes, still.astype(bool), still, tuple(sizes))
    quality = measure_quality(Vocabulary(None, codes, assignment, build_quantizer(recipe, 0)))
    tokenizer = SemanticIdTokenizer(
        name_items(len(codes)), codes, Fitted(recipe, {}, 0, tuple(sizes)), raw_codes=codes
    )
    with write_artifact(out, step="tokenize", recipe=recipe) as work:
        write_result(FitResult(tokenizer, quality, []), work.path)
    return out


def spell_index(codes: np.ndarray, ids: Sequence[str] | None = None) -> dict[str, list[str]]:
    ids = name_items(len(codes)) if ids is None else ids
    return {
        item_id: [f"<{'abcdef'[level]}_{code}>" for level, code in enumerate(row)]
        for item_id, row in zip(ids, np.asarray(codes).tolist(), strict=True)
    }


def write_index_file(path: Path, codes: np.ndarray, ids: Sequence[str] | None = None) -> Path:
    path.write_text(json.dumps(spell_index(codes, ids)))
    return path


def plant_codes(n_items: int = N_ITEMS) -> np.ndarray:
    """Codes whose first level is the planted cluster, and which are unique."""
    rows = np.arange(n_items)
    return np.stack([rows % N_CLUSTERS, rows // N_CLUSTERS], axis=1).astype(np.int32)

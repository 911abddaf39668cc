"""Vectors to measure on: the real set where it is there, else made ones of the same size.

Owns how they are found and made. Knows no quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from genrec.tokenizers.embedding.lsa import LsaEncoder
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.types import FloatArray

REAL_SET = "amazon14-beauty"
REAL_ITEMS, REAL_WIDTH = 12_101, 256
_GROUP_ITEMS = 20
_CHUNK = 50_000


def read_real_vectors(data: Path | None, items: int | None) -> tuple[str, FloatArray]:
    """The name and the vectors of the 12k-item set, each item's words through the encoder lsa.

    Args:
        data: the folder that holds the set's folder; None, or one without it, makes vectors up.
        items: how many; None takes all.
    """
    path = None if data is None else data / REAL_SET / "items.parquet"
    if path is None or not path.is_file():
        made = np.concatenate(list(make_vectors(items or REAL_ITEMS, REAL_WIDTH)))
        return f"made-up set ({len(made):,} items)", made
    columns = pl.read_parquet(path, columns=["title", "brand", "categories"])
    texts = [" ".join(row) for row in columns.head(items or REAL_ITEMS).fill_null("").iter_rows()]
    recipe = EmbedRecipe.model_validate({"lsa": {"dimensions": REAL_WIDTH}})
    return f"{REAL_SET}, lsa-{REAL_WIDTH}", LsaEncoder(recipe).encode_texts(texts)


def make_vectors(items: int, width: int, seed: int = 0) -> Iterator[FloatArray]:
    """Vectors of length 1, (n, D), chunk by chunk: variants of products of kinds.

    Items come in families of about 20, some of whose members differ little, so that a tenth or so
    share all of four levels of 256 codes with another, as in real catalogues.
    """
    generator = np.random.default_rng(seed)
    kinds = generator.normal(size=(512, width)).astype(np.float32)
    families = generator.normal(size=(max(1, items // _GROUP_ITEMS), 32)).astype(np.float32)
    lift = generator.normal(size=(32, width)).astype(np.float32) / np.float32(32**0.5)
    kind = generator.integers(0, len(kinds), len(families))
    for start in range(0, items, _CHUNK):
        family = generator.integers(0, len(families), min(_CHUNK, items - start))
        spread = generator.gamma(2, 0.4, len(family)).astype(np.float32)[:, None]
        noise = generator.normal(size=(len(family), 32)).astype(np.float32)
        rows = kinds[kind[family]] + (families[family] + spread * noise) @ lift
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)

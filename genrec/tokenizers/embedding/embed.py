"""The `embed` step: text of items or users to an `embeddings/` artefact, and back from disk.

Owns the artefact's files. Knows neither how a text becomes a vector nor what vectors are for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.embedding.encoder import TextEngine, build_encoder, encode_with_cache
from genrec.tokenizers.embedding.user_text import read_user_texts
from genrec.tokenizers.embedding.vector_cache import default_cache
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.vectors import VectorRows, open_shards, write_shards

ITEMS_FILE = "items.parquet"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector an item or user, in the order of `item_ids`.

    Shapes:
        vectors: (N, D) float32 rows, memory-mapped.
    """

    artifact: Artifact
    item_ids: tuple[str, ...]
    vectors: VectorRows
    subject: str = "items"


def make_embeddings(
    recipe: EmbedRecipe,
    data: Path,
    out: Path,
    *,
    cache: Path | None = None,
    engine: TextEngine | None = None,
) -> Artifact:
    """The `embeddings/` artefact of a catalogue's item text, or of its users' reviews.

    Args:
        recipe: whose text, encoder and its values.
        data: a `data/` artefact.
        out: the directory to write.
        cache: where vectors of single texts are kept between runs; `$GENREC_CACHE` by default.
        engine: where texts are embedded; None is here.

    Raises:
        ArtifactError: `data` is no complete data artefact, or `out` cannot be written.
        ClusterError: a cluster that cannot be reached, or a fault on it.
        DataError: the catalogue is empty, or no item has text, or no user a review.
        ModelError: the encoder's model cannot be loaded, or gives values that are not finite.
        RecipeError: an encoder whose work cannot be split over a cluster.
    """
    catalogue = load_artifact(data, step="data")
    users = recipe.subject == "users"
    item_ids, texts = read_user_texts(data) if users else _read_texts(catalogue.path)
    encoder = build_encoder(recipe)
    split = engine.split_texts(recipe, encoder) if engine is not None else None
    with write_artifact(out, step="embed", recipe=recipe, inputs={"data": catalogue}) as work:
        chunks = encode_with_cache(
            encoder, texts, cache or default_cache(), recipe.shard_items, encode_shards=split
        )
        work.facts["items"], work.facts["dimensions"] = write_shards(chunks, work.path)
        pl.DataFrame({"item_id": item_ids}).write_parquet(work.path / ITEMS_FILE)
        work.facts["items_without_text"] = sum(not text.strip() for text in texts)
        work.facts["subject"] = recipe.subject
    return work.artifact


def _read_texts(data: Path) -> tuple[list[str], list[str]]:
    items = pl.read_parquet(data / "items.parquet", columns=["item_id", "text"])
    texts = items["text"].fill_null("").to_list()
    empty = sum(not text.strip() for text in texts)
    if empty == len(texts):
        raise DataError(
            f"none of the {len(texts):,} items in {data} has text to embed; name fields that the "
            f"source has in the data recipe's text fields"
        )
    if empty:
        _log.info("embed: %s of %s items have no text", f"{empty:,}", f"{len(texts):,}")
    return items["item_id"].to_list(), texts


def load_embeddings(path: Path) -> Embeddings:
    """The vectors of a complete `embeddings/` artefact.

    Raises:
        ArtifactError: missing, half written, changed, or of another step; or its files disagree.
    """
    artifact = load_artifact(path, step="embed")
    try:
        item_ids = pl.read_parquet(artifact.path / ITEMS_FILE)["item_id"].to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{path} cannot be read as embeddings: {error}") from error
    vectors = open_shards(artifact.path)
    if len(vectors) != len(item_ids):
        raise ArtifactError(
            f"{path} holds {len(vectors):,} vectors for {len(item_ids):,} items; embed again"
        )
    subject = str(artifact.manifest.facts.get("subject", "items"))
    return Embeddings(artifact, tuple(item_ids), vectors, subject)

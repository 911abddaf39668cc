from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import write_artifact
from genrec.errors import ArtifactError, DataError
from genrec.recipe import Recipe
from genrec.tokenizers.embedding import encoder as encoder_module
from genrec.tokenizers.embedding.embed import load_embeddings, make_embeddings
from genrec.tokenizers.embedding.vector_cache import VectorCache
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.vectors import write_shards

SMALL = EmbedRecipe.model_validate({"lsa": {"dimensions": 8}})
Maker = Callable[..., Path]


def test_every_item_gets_its_vector(
    make_catalogue: Maker, texts: list[str], tmp_path: Path
) -> None:
    data = make_catalogue(texts)
    artifact = make_embeddings(SMALL, data, tmp_path / "out")
    loaded = load_embeddings(tmp_path / "out")
    assert loaded.item_ids == tuple(f"item-{row}" for row in range(60))
    assert loaded.vectors.shape == (60, 8)
    assert artifact.manifest.facts == {
        "items": 60,
        "dimensions": 8,
        "items_without_text": 0,
        "subject": "items",
    }
    assert artifact.manifest.inputs["data"]["path"] == str(data)
    assert loaded.artifact.manifest.digest == artifact.manifest.digest


def test_same_input_same_digest(make_catalogue: Maker, texts: list[str], tmp_path: Path) -> None:
    data = make_catalogue(texts)
    digests = {
        make_embeddings(SMALL, data, tmp_path / name).manifest.digest for name in ("one", "two")
    }
    assert len(digests) == 1


def test_sentence_vectors_are_kept_between_runs(
    make_catalogue: Maker,
    texts: list[str],
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = EmbedRecipe.model_validate(
        {
            "encoder": "sentence-transformers",
            "sentence_transformers": {"model": str(tiny_encoder), "device": "cpu"},
            "shard_items": 25,
        }
    )
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    make_embeddings(recipe, make_catalogue(texts[:50]), tmp_path / "first")
    asked: list[str] = []
    build = encoder_module.build_encoder

    def watch_encoder(recipe: EmbedRecipe) -> encoder_module.TextEncoder:
        found = build(recipe)
        encode = found.encode_texts

        def encode_texts(texts: list[str]) -> np.ndarray:
            asked.extend(texts)
            return encode(texts)

        monkeypatch.setattr(found, "encode_texts", encode_texts)
        return found

    monkeypatch.setattr("genrec.tokenizers.embedding.embed.build_encoder", watch_encoder)
    make_embeddings(recipe, make_catalogue(texts, "more"), tmp_path / "second")
    assert sorted(asked) == sorted(texts[50:])
    first, second = (load_embeddings(tmp_path / name).vectors for name in ("first", "second"))
    np.testing.assert_array_equal(first[:], second[:50])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_items_without_text_are_counted(
    make_catalogue: Maker, texts: list[str], tmp_path: Path
) -> None:
    data = make_catalogue([*texts, "", None, "  "])
    artifact = make_embeddings(SMALL, data, tmp_path / "out")
    assert artifact.manifest.facts["items_without_text"] == 3
    assert (load_embeddings(tmp_path / "out").vectors[60:] == 0).all()


@pytest.mark.parametrize("empty", [[], ["", None]])
def test_a_catalogue_without_text_is_refused(
    make_catalogue: Maker, empty: list[str | None], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"none of the {len(empty)} items in .* has text to embed"):
        make_embeddings(SMALL, make_catalogue(empty), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_input_of_another_step_is_refused(
    make_catalogue: Maker, texts: list[str], tmp_path: Path
) -> None:
    data = make_catalogue(texts)
    with pytest.raises(ArtifactError, match="`genrec data`, but that of `genrec embed`"):
        load_embeddings(data)
    with pytest.raises(ArtifactError, match="does not exist"):
        make_embeddings(SMALL, tmp_path / "nothing", tmp_path / "out")
    manifest = data / "manifest.json"
    manifest.write_text(json.dumps({"schema": 99}))
    with pytest.raises(ArtifactError, match="manifest schema 99"):
        make_embeddings(SMALL, data, tmp_path / "out")


def write_embeddings(out: Path, vectors: np.ndarray, item_ids: list[str]) -> Path:
    with write_artifact(out, step="embed", recipe=EmbedRecipe()) as work:
        write_shards([vectors], work.path)
        pl.DataFrame({"item_id": item_ids}).write_parquet(work.path / "items.parquet")
    return out


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    vectors = np.zeros((3, 2), dtype=np.float32)
    uneven = write_embeddings(tmp_path / "uneven", vectors, ["a", "b"])
    with pytest.raises(ArtifactError, match="3 vectors for 2 items"):
        load_embeddings(uneven)
    with write_artifact(tmp_path / "empty", step="embed", recipe=Recipe()):
        pass
    with pytest.raises(ArtifactError, match="cannot be read as embeddings"):
        load_embeddings(tmp_path / "empty")
    with write_artifact(tmp_path / "garbage", step="embed", recipe=Recipe()) as work:
        (work.path / "embeddings-00000.safetensors").write_bytes(b"garbage")
        pl.DataFrame({"item_id": ["a"]}).write_parquet(work.path / "items.parquet")
    with pytest.raises(ArtifactError, match="cannot be read as vectors"):
        load_embeddings(tmp_path / "garbage")


def test_a_full_disk_leaves_nothing_that_looks_finished(
    make_catalogue: Maker, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genrec.tokenizers.vectors.save_file", fill_disk)
    with pytest.raises(ArtifactError, match="the disk is full"):
        make_embeddings(SMALL, make_catalogue(texts), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_users_are_embedded_by_what_they_wrote(
    texts: list[str], make_catalogue: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def read_user_texts(data: Path) -> tuple[list[str], list[str]]:
        asked.append(data)
        return [f"user-{row}" for row in range(40)], texts[:40]

    monkeypatch.setattr("genrec.tokenizers.embedding.embed.read_user_texts", read_user_texts)
    recipe = SMALL.model_copy(update={"subject": "users"})
    data = make_catalogue(texts)
    artifact = make_embeddings(recipe, data, tmp_path / "out")
    loaded = load_embeddings(tmp_path / "out")
    assert asked == [data]
    assert loaded.subject == artifact.manifest.facts["subject"] == "users"
    assert loaded.item_ids[:2] == ("user-0", "user-1")
    assert loaded.vectors.shape == (40, 8)


def test_memory_does_not_grow_with_the_vectors(
    make_catalogue: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WideEncoder:
        digest = "wide"

        def __init__(self, recipe: EmbedRecipe) -> None:
            del recipe

        def encode_texts(self, texts: list[str]) -> np.ndarray:
            return np.repeat(np.array([[len(text)] for text in texts], dtype=np.float32), 4096, 1)

    monkeypatch.setitem(encoder_module.ENCODERS, "wide", WideEncoder)
    monkeypatch.setattr(
        "genrec.tokenizers.embedding.embed.write_shards",
        partial(write_shards, shard_bytes=100 * 4096 * 4),
    )
    by_chunks = partialmethod(VectorCache.find_vectors, rows=64)
    monkeypatch.setattr(VectorCache, "find_vectors", by_chunks)
    data = make_catalogue([f"text {'x' * (row % 100)} {row}" for row in range(1000)])
    recipe = EmbedRecipe(encoder="wide", shard_items=50)
    tracemalloc.start()
    try:
        make_embeddings(recipe, data, tmp_path / "out", cache=tmp_path / "cache")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(list((tmp_path / "out").glob("embeddings-*.safetensors"))) == 10
    assert peak_bytes < 1000 * 4096 * 4 / 2
    vectors = load_embeddings(tmp_path / "out").vectors
    assert vectors[[0, 999]][:, 7].tolist() == [len("text  0"), len(f"text {'x' * 99} 999")]

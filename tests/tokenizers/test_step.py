from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, CapacityError, DataError
from genrec.tokenizers.embedding.embed import make_embeddings
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer, make_tokenizer

from .conftest import plant_clusters
from .test_embed import write_embeddings

RECIPE = TokenizeRecipe.model_validate(
    {
        "codebook_sizes": [8, 8, 8],
        "rqvae": {"hidden_sizes": [16], "latent_size": 4, "max_epochs": 12, "warmup_epochs": 4},
    }
)


@pytest.fixture
def embeddings(make_catalogue: Callable[..., Path], texts: list[str], tmp_path: Path) -> Path:
    recipe = EmbedRecipe.model_validate({"lsa": {"dimensions": 8}})
    make_embeddings(recipe, make_catalogue(texts), tmp_path / "embeddings")
    return tmp_path / "embeddings"


def test_the_step_writes_a_tokenizer(
    embeddings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        artifact = make_tokenizer(RECIPE, embeddings, tmp_path / "out")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.item_ids[:2] == ("item-0", "item-1")
    assert len(set(tokenizer.sids)) == 60
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert quality["collision_rate"]["after"] == 0.0
    assert artifact.manifest.facts["collision_rate"] == quality["collision_rate"]
    assert artifact.manifest.facts["codebook_sizes"] == [8, 8, 8]
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert {"epoch", "loss", "valid_error", "warmup"} == set(history[0])
    assert "level  codes   used  utilisation  perplexity" in caplog.text


def test_same_seed_same_artefact(embeddings: Path, tmp_path: Path) -> None:
    digests = {make_tokenizer(RECIPE, embeddings, tmp_path / name).manifest.digest for name in "ab"}
    assert len(digests) == 1


def test_a_catalogue_larger_than_the_code_space_is_refused(
    embeddings: Path, tmp_path: Path
) -> None:
    recipe = TokenizeRecipe(codebook_sizes=(4, 4))
    with pytest.raises(CapacityError, match=r"60 items cannot have unique codes.* 4 x 4 make 16"):
        make_tokenizer(recipe, embeddings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_with_nan_are_named(tmp_path: Path) -> None:
    vectors = plant_clusters(4)
    vectors[2, 0] = np.nan
    source = write_embeddings(tmp_path / "embeddings", vectors, list("abcd"))
    with pytest.raises(DataError, match=r"in 1 of 4 rows \(2\)"):
        make_tokenizer(RECIPE, source, tmp_path / "out")


def test_a_changed_artefact_is_refused(embeddings: Path, tmp_path: Path) -> None:
    make_tokenizer(RECIPE, embeddings, tmp_path / "out")
    file = tmp_path / "out" / "quality.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ArtifactError, match=r"quality\.json"):
        SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / ".partial.json").write_text("{}")
    with pytest.raises(ArtifactError, match="half written"):
        SemanticIdTokenizer.from_pretrained(tmp_path / "out")


def test_a_full_disk_leaves_nothing_that_looks_finished(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genrec.tokenizers.tokenizer_files.save_file", fill_disk)
    with pytest.raises(ArtifactError, match="the disk is full"):
        make_tokenizer(RECIPE, embeddings, tmp_path / "out")
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path / "out", step="tokenize")


@pytest.mark.slow
def test_real_items_get_unique_codes(find_real_data: Callable[[str], Path]) -> None:
    items = pl.read_parquet(find_real_data("amazon18-scientific") / "items.parquet")
    columns = items.select(pl.col("title", "brand", "categories").cast(pl.String).fill_null(""))
    texts = [" ".join(row) for row in columns.iter_rows()]
    from genrec.tokenizers.embedding.lsa import LsaEncoder

    vectors = LsaEncoder(EmbedRecipe.model_validate({"lsa": {"dimensions": 64}})).encode_texts(
        texts
    )
    recipe = TokenizeRecipe.model_validate(
        {"codebook_sizes": [128, 128, 128], "rqvae": {"max_epochs": 50}}
    )
    item_ids = tuple(str(value) for value in items["item_id"])
    result = fit_tokenizer(recipe, FitInput(item_ids, vectors))
    quality = result.quality
    assert len(set(result.tokenizer.sids)) == len(item_ids)
    assert quality["collision_rate"]["before"] < 0.5
    assert all(level["utilisation"] > 0.9 for level in quality["levels"])
    assert quality["reconstruction"]["after"]["cosine"] > 0.7

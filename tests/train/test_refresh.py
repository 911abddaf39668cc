"""A trained model with a newer tokenizer's items: on disk and in memory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from genrec.artifact import load_artifact, write_artifact
from genrec.cli import app
from genrec.decode.trie import Trie
from genrec.errors import ArtifactError, DataError, ModelError
from genrec.recipe import Recipe
from genrec.recommender import Recommender
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.update import remove_items
from genrec.tokenizers.update_step import add_to_artifact, remove_from_artifact
from genrec.tokenizers.vectors import open_shards, write_shards
from genrec.train.refresh import apply_tokenizer

NEW = ("new-1", "new-2")


@dataclass(frozen=True)
class Versions:
    """A run, its enlarged data, and later versions of its tokenizer."""

    run: Path
    data: Path
    added: Path
    removed: Path
    gone: tuple[str, ...]


@pytest.fixture(scope="module")
def versions(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Two items added, then two old ones removed."""
    folder = tmp_path_factory.mktemp("versions")
    items = pl.read_parquet(tiny_run / "data" / "items.parquet")
    more = items[:2].with_columns(
        item_index=pl.Series([60, 61], dtype=items["item_index"].dtype),
        item_id=pl.Series(NEW),
        title=pl.Series(["Brand new", None]),
    )
    with write_artifact(folder / "data", step="data", recipe=Recipe()) as work:
        pl.concat([items, more]).write_parquet(work.path / "items.parquet")
    vectors = np.asarray(open_shards(tiny_run / "embeddings")[0:2]) + np.float32(0.01)
    with write_artifact(folder / "new", step="embed", recipe=EmbedRecipe()) as work:
        write_shards([vectors], work.path)
        pl.DataFrame({"item_id": NEW}).write_parquet(work.path / "items.parquet")
    add_to_artifact(
        tiny_run / "tokenizer", folder / "two", embeddings=folder / "new", force_space=True
    )
    gone = tuple(items["item_id"][:2].to_list())
    remove_from_artifact(folder / "two", gone, folder / "three")
    return Versions(tiny_run, folder / "data", folder / "two", folder / "three", gone)


@pytest.fixture(scope="module")
def refreshed(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refreshed") / "model"
    apply_tokenizer(versions.run / "model", versions.removed, versions.data, out)
    return out


def score_all(recommender: Recommender, history: list[str]) -> dict[str, float]:
    answers = recommender.recommend(history, k=recommender.n_items, exclude_seen=False)
    return {answer.item_id: answer.score for answer in answers}


def test_the_model_answers_with_the_items_of_the_newer_tokenizer(
    versions: Versions, refreshed: Path
) -> None:
    before = Recommender.from_pretrained(versions.run / "model")
    after = Recommender.from_pretrained(refreshed)
    assert after.n_items == before.n_items
    assert after.item_ids[-2:] == NEW
    assert after.find_titles(NEW) == ["Brand new", ""]
    history = list(before.item_ids[10:13])
    old, new = score_all(before, history), score_all(after, history)
    assert set(new) == {*old, *NEW} - set(versions.gone)
    for item in set(new) - set(NEW):
        assert new[item] == pytest.approx(old[item], abs=1e-6)
    assert after.recommend(list(NEW), k=3)


def test_weights_are_the_same_files_and_the_rest_says_what_changed(
    versions: Versions, refreshed: Path
) -> None:
    model = versions.run / "model"
    assert os.path.samefile(model / "model.safetensors", refreshed / "model.safetensors")
    assert {path.name for path in model.iterdir()} == {path.name for path in refreshed.iterdir()}
    manifest = load_artifact(refreshed, step="train").manifest
    assert set(manifest.inputs) == {"train", "tokenize", "data"}
    assert (manifest.facts["items_added"], manifest.facts["items_removed"]) == (2, 2)
    old, new = (json.loads((folder / "genrec.json").read_text()) for folder in (model, refreshed))
    assert new["n_items"] == 60
    assert new["catalogue_digest"] != old["catalogue_digest"]
    assert new["tokenizer_digest"] == load_artifact(versions.removed).manifest.digest
    assert new["base"] == old["base"]
    assert set(new["gone_items"]) == set(versions.gone)
    index = pl.read_parquet(refreshed / "item_index.parquet")
    assert index["item_index"].to_list() == list(range(60))
    assert "60 items" in (refreshed / "README.md").read_text()
    load_artifact(model, step="train")  # untouched


def test_a_copy_does_where_links_do_not(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    model = versions.run / "model"
    apply_tokenizer(model, versions.added, versions.data, tmp_path / "out")
    assert not os.path.samefile(model / "config.json", tmp_path / "out" / "config.json")
    assert Recommender.from_pretrained(tmp_path / "out").n_items == 62


def test_the_update_in_memory_equals_the_one_on_disk(versions: Versions, refreshed: Path) -> None:
    before = Recommender.from_pretrained(versions.run / "model")
    tokenizer = SemanticIdTokenizer.from_pretrained(versions.removed)
    after = before.update_items(tokenizer, {"new-1": "Brand new", "new-2": ""})
    history = list(before.item_ids[10:13])
    loaded = Recommender.from_pretrained(refreshed)
    assert after.item_ids == loaded.item_ids
    assert after.recommend(history, k=60, exclude_seen=False) == loaded.recommend(
        history, k=60, exclude_seen=False
    )
    assert before.n_items == 60 and before.engine.n_items == 60
    assert set(score_all(before, history)) == set(before.item_ids)
    built = Trie.from_codes(tokenizer.codes)
    np.testing.assert_array_equal(after.engine.trie.order, built.order)  # type: ignore[attr-defined]
    again = after.update_items(tokenizer, {})
    assert again.item_ids == after.item_ids
    with pytest.raises(DataError, match=r"need a title(.|\n)*'new-1'"):
        before.update_items(tokenizer, {"new-2": ""})


def test_an_engine_elsewhere_cannot_change_its_items(versions: Versions) -> None:
    recommender = Recommender.from_pretrained(versions.run / "model")
    recommender.engine = object()  # type: ignore[assignment]
    tokenizer = SemanticIdTokenizer.from_pretrained(versions.added)
    with pytest.raises(ModelError, match=r"a object cannot change .*genrec tokenize apply"):
        recommender.update_items(tokenizer, {})


def rewrite_tokenizer(source: Path, out: Path, swap: bool = False, rename: bool = False) -> Path:
    """A tokenizer artefact that no command would make."""
    old = SemanticIdTokenizer.from_pretrained(source)
    codes, ids = old.codes.copy(), list(old.item_ids)
    if swap:
        codes[[0, 1]] = codes[[1, 0]]
    if rename:
        ids[0] = "new-1"
    tokenizer = SemanticIdTokenizer(ids, codes, old.fitted, raw_codes=old.raw_codes)
    with write_artifact(out, step="tokenize", recipe=old.recipe) as work:
        tokenizer.save_pretrained(work.path)
    return out


def test_strangers_are_refused(versions: Versions, tmp_path: Path) -> None:
    model, own = versions.run / "model", versions.run / "tokenizer"
    swapped = rewrite_tokenizer(own, tmp_path / "swapped", swap=True)
    with pytest.raises(ModelError, match=r"other semantic IDs than in training(.|\n)*2 problems"):
        apply_tokenizer(model, swapped, versions.data, tmp_path / "out")
    other = SemanticIdTokenizer.from_pretrained(own)
    settings = json.loads((model / "genrec.json").read_text())
    assert settings["codebook_sizes"] == list(other.codebook_sizes)
    less, _ = remove_items(other, other.item_ids[:59])
    with pytest.raises(ModelError, match=r"tokens for codebooks of \[9, 8, 8\], but .* \[8, 8, 8"):
        from genrec.tokenizers.update import check_successor

        check_successor({}, (9, 8, 8), less)
    with pytest.raises(ModelError, match=r"no item in common \(1 and 1\)"):
        check_successor({"x": "<a_0>"}, (8, 8, 8), less)
    with pytest.raises(ArtifactError, match="is the model itself"):
        apply_tokenizer(model, own, versions.data, model)
    with pytest.raises(DataError, match=r"no title and text(.|\n)*'new-1'(.|\n)*'new-2'"):
        apply_tokenizer(model, versions.added, versions.run / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reused_id_needs_to_be_allowed(
    versions: Versions, refreshed: Path, tmp_path: Path
) -> None:
    model = versions.run / "model"
    reused = rewrite_tokenizer(versions.run / "tokenizer", tmp_path / "reused", rename=True)
    # Also by a model that lost the item in a version between: its weights have not.
    for known in (model, refreshed):
        with pytest.raises(ModelError, match=r"'new-1' (has|was)"):
            apply_tokenizer(known, reused, versions.data, tmp_path / "out")
    apply_tokenizer(model, reused, versions.data, tmp_path / "out", allow_reuse=True)
    recommender = Recommender.from_pretrained(tmp_path / "out")
    assert "new-1" in recommender.item_ids and versions.gone[0] not in recommender.item_ids


def test_the_command_makes_a_model(versions: Versions, tmp_path: Path) -> None:
    arguments = ["-m", str(versions.run / "model"), "--tokenizer", str(versions.added)]
    arguments += ["--data", str(versions.data), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["tokenize", "apply", *arguments])
    assert done.exit_code == 0, done.output
    assert "2 items added and 0 removed, weights unchanged" in done.output

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.errors import ArtifactError, DataError, UnknownItemError
from genrec.manifest import hash_file
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.tokenizer_files import Fitted, Lineage

from .conftest import plant_clusters

RECIPE = TokenizeRecipe(quantizer="rqkmeans", codebook_sizes=(8, 6, 8))
FITTED = Fitted(RECIPE, {}, 4, (8, 6, 8))


@pytest.fixture(scope="module")
def fitted() -> SemanticIdTokenizer:
    item_ids = tuple(f"item-{row}" for row in range(50))
    return fit_tokenizer(RECIPE, FitInput(item_ids, plant_clusters(50))).tokenizer


@pytest.fixture
def saved(fitted: SemanticIdTokenizer, tmp_path: Path) -> Path:
    fitted.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_items_and_semantic_ids_name_each_other(fitted: SemanticIdTokenizer) -> None:
    sids = fitted.encode(fitted.item_ids)
    assert len(set(sids)) == 50
    assert fitted.decode(sids) == list(fitted.item_ids)
    assert fitted.encode(["item-7"]) == [fitted.sids[7]]
    assert fitted.encode([]) == []
    first = "".join(fitted.tokens()[level][code] for level, code in enumerate(fitted.codes[0]))
    assert first == sids[0]


def test_tokens_are_all_there_can_be(fitted: SemanticIdTokenizer) -> None:
    assert [len(level) for level in fitted.tokens()] == [8, 6, 8]
    assert fitted.tokens()[1][0] == "<b_0>"
    assert fitted.n_levels == 3
    assert fitted.n_items == 50
    assert fitted.codebook_sizes == (8, 6, 8)


def test_unknown_names_are_all_listed(fitted: SemanticIdTokenizer) -> None:
    with pytest.raises(UnknownItemError, match=r"2 problems\n  - 'nope'\n  - 'neither'"):
        fitted.encode(["item-1", "nope", "neither"])
    taken = {tuple(row) for row in fitted.codes.tolist()}
    free = next(code for code in range(8) if (0, 0, code) not in taken)
    with pytest.raises(UnknownItemError, match=rf"no item of 50 .*\n  - '<a_0><b_0><c_{free}>'"):
        fitted.decode([fitted.sids[0], f"<a_0><b_0><c_{free}>"])
    with pytest.raises(UnknownItemError, match="<a_0>"):
        fitted.decode(["<a_0>"])
    with pytest.raises(DataError, match="is no semantic ID"):
        fitted.decode(["item-1"])


def test_what_is_saved_comes_back(fitted: SemanticIdTokenizer, saved: Path) -> None:
    loaded = SemanticIdTokenizer.from_pretrained(str(saved))
    assert loaded.item_ids == fitted.item_ids
    assert loaded.recipe == fitted.recipe
    np.testing.assert_array_equal(loaded.codes, fitted.codes)
    assert loaded.codes.dtype == np.int32
    new = plant_clusters(20, seed=5)
    np.testing.assert_array_equal(loaded.quantize(new), fitted.quantize(new))
    table = pl.read_parquet(saved / "codes.parquet")
    assert table.schema == {
        "item_id": pl.String(),
        "codes": pl.List(pl.Int32()),
        "sid": pl.String(),
        "raw_codes": pl.List(pl.Int32()),
    }
    assert table["sid"].to_list() == list(fitted.sids)
    config = json.loads((saved / "config.json").read_text())
    assert (config["n_levels"], config["codebook_sizes"]) == (3, [8, 6, 8])


def test_saving_twice_writes_the_same_bytes(fitted: SemanticIdTokenizer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fitted.save_pretrained(tmp_path / name)
    files = ("config.json", "model.safetensors", "codes.parquet")
    for name in files:
        assert hash_file(tmp_path / "one" / name) == hash_file(tmp_path / "two" / name)


def test_only_finite_vectors_of_its_width_are_quantized(fitted: SemanticIdTokenizer) -> None:
    with pytest.raises(DataError, match="the tokenizer was fitted to 16"):
        fitted.quantize(np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(DataError, match="NaN or infinity in 1 of 1 rows"):
        fitted.quantize(np.full((1, 16), np.nan, dtype=np.float32))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "codes.parquet"])
def test_missing_files_are_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=f"no semantic-ID tokenizer: {name} missing"):
        SemanticIdTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "codes.parquet"])
def test_files_of_another_tokenizer_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    item_ids = tuple(f"item-{row}" for row in range(50))
    recipe = RECIPE.model_copy(update={"seed": 1})
    other = fit_tokenizer(recipe, FitInput(item_ids, plant_clusters(50, seed=1))).tokenizer
    other.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / name, saved / name)
    with pytest.raises(ArtifactError, match=rf"do not belong together(.|\n)*- {name}: not the"):
        SemanticIdTokenizer.from_pretrained(saved)


def test_a_config_that_does_not_fit_is_refused(saved: Path) -> None:
    change_config(saved, n_levels=4)
    with pytest.raises(ArtifactError, match="contradicts itself"):
        SemanticIdTokenizer.from_pretrained(saved)
    change_config(saved, n_levels=3, codebook_sizes=[8, 6, 2])
    with pytest.raises(ArtifactError, match=r"does not hold together(.|\n)*sizes \[8, 6, 2\]"):
        SemanticIdTokenizer.from_pretrained(saved)
    change_config(saved, schema=7)
    with pytest.raises(ArtifactError, match="schema 7, but this genrec reads 2"):
        SemanticIdTokenizer.from_pretrained(saved)


def test_weights_that_do_not_fit_the_recipe_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    change_config(saved, recipe=config["recipe"] | {"quantizer": "rqvae"})
    loaded = SemanticIdTokenizer.from_pretrained(saved)
    with pytest.raises(ArtifactError, match="weights are not those of this RQ-VAE"):
        loaded.quantize(plant_clusters(2))


def test_files_that_cannot_be_read_are_refused(saved: Path) -> None:
    (saved / "codes.parquet").write_bytes(b"garbage")
    files = {name: hash_file(saved / name) for name in ("model.safetensors", "codes.parquet")}
    change_config(saved, files=files)
    with pytest.raises(ArtifactError, match="cannot be read"):
        SemanticIdTokenizer.from_pretrained(saved)


def test_codes_that_are_not_unique_are_refused() -> None:
    codes = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(DataError, match=r"2 problems(.|\n)*1 items share(.|\n)*such as 'a'"):
        SemanticIdTokenizer(["a", "a"], codes, FITTED)
    with pytest.raises(DataError, match=r"shape \(2, 2\), but need \(2, 3\)"):
        SemanticIdTokenizer(["a", "b"], codes[:, :2], FITTED)
    with pytest.raises(DataError, match="outside codebooks"):
        SemanticIdTokenizer(["a", "b"], codes - [[0], [1]], FITTED)


def test_a_removed_item_stays_on_record(tmp_path: Path) -> None:
    lineage = Lineage(3, "digest", ("gone",), np.array([[7, 5, 7]], dtype=np.int32))
    codes = np.array([[0, 0, 1], [0, 0, 2]], dtype=np.int32)
    SemanticIdTokenizer(["a", "b"], codes, FITTED, lineage=lineage).save_pretrained(tmp_path)
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path)
    assert (loaded.lineage.version, loaded.lineage.parent) == (3, "digest")
    assert loaded.lineage.retired_ids == ("gone",)
    np.testing.assert_array_equal(loaded.lineage.retired_codes, [[7, 5, 7]])
    assert loaded.raw_codes is None
    (tmp_path / "retired.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"retired\.parquet: not the file"):
        SemanticIdTokenizer.from_pretrained(tmp_path)


def test_users_are_spelled_apart_from_items(tmp_path: Path) -> None:
    codes = np.array([[0, 0, 1], [0, 0, 2]], dtype=np.int32)
    users = SemanticIdTokenizer(["a", "b"], codes, replace(FITTED, subject="users"))
    assert users.sids == ("<ua_0><ub_0><uc_1>", "<ua_0><ub_0><uc_2>")
    assert users.tokens()[2][7] == "<uc_7>"
    assert users.decode(["<ua_0><ub_0><uc_2>"]) == ["b"]
    with pytest.raises(DataError, match="is no semantic ID"):
        users.decode(["<a_0><b_0><c_2>"])
    users.save_pretrained(tmp_path)
    assert SemanticIdTokenizer.from_pretrained(tmp_path).sids == users.sids
    with pytest.raises(UnknownItemError, match="knows 2 users, but not these"):
        users.encode(["c"])


def test_ids_can_be_words(tmp_path: Path) -> None:
    codes = np.array([[1, 0], [2, 1]], dtype=np.int32)
    fitted = Fitted(RECIPE, {}, 0, (3, 2))
    titles = SemanticIdTokenizer(["a", "b"], codes, fitted, sids=["red", "blue pen"])
    titles.save_pretrained(tmp_path)
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path)
    assert not loaded.is_spelled
    assert loaded.encode(["b"]) == ["blue pen"]
    assert loaded.decode(["red"]) == ["a"]
    with pytest.raises(DataError, match="they add no tokens"):
        loaded.tokens()


def test_code_lists_of_different_lengths_are_refused(saved: Path) -> None:
    table = pl.read_parquet(saved / "codes.parquet")
    uneven = [[1], *table["codes"].to_list()[1:]]
    table.with_columns(pl.Series("codes", uneven, dtype=pl.List(pl.Int32))).write_parquet(
        saved / "codes.parquet"
    )
    files = {name: hash_file(saved / name) for name in ("model.safetensors", "codes.parquet")}
    change_config(saved, files=files)
    with pytest.raises(ArtifactError, match="lists of different lengths"):
        SemanticIdTokenizer.from_pretrained(saved)

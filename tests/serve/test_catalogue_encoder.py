"""Where codes of new items come from: what the tokenizer was made with, found or missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.errors import ArtifactError, DataError, ModelError
from genrec.recommender import Recommender
from genrec.serve.catalogue_store import open_store
from genrec.serve.item_codes import NewItem
from genrec.serve.item_encoder import ItemEncoder, Sources, find_sources, open_encoder
from genrec.tokenizers.embedding.encoder import build_later_encoder
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.quantizer import find_quantizer
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.update_step import remove_from_artifact

LAMP = {"title": "Pennywise &amp; Folding  Lamp", "brand": "", "price": "$5", "categories": "Home"}


def move_run(run: Path, out: Path, *steps: str) -> Path:
    """A copy of some steps of a run; what the manifests name is then not where they say."""
    for step in steps:
        shutil.copytree(run / step, out / step)
    return out


def break_link(folder: Path) -> None:
    """Let no manifest in a folder find an input at its recorded place."""
    for path in folder.glob("*/manifest.json"):
        values = json.loads(path.read_text())
        for record in values["inputs"].values():
            record["path"] = "/nowhere/" + Path(record["path"]).name
        path.write_text(json.dumps(values))


def open_it(tokenizer: Path, recommender: Recommender) -> ItemEncoder:
    catalogue = recommender.catalogue
    sids = dict(zip(catalogue.item_ids, catalogue.sids, strict=True))
    return open_encoder(tokenizer, sids, (8, 8, 8))


def test_a_text_is_made_as_the_data_step_makes_it(recommender: Recommender, tiny_run: Path) -> None:
    encoder = open_it(tiny_run / "tokenizer", recommender)
    assert encoder.render_text(LAMP) == "title: Pennywise & Folding Lamp; categories: Home"
    assert encoder.render_text({"title": "x y" * 2000})[-1] != " "
    row = pl.read_parquet(tiny_run / "data" / "items.parquet").row(3, named=True)
    fields = {name: row[name] for name in ("title", "brand", "categories", "description", "price")}
    assert encoder.render_text(fields) == row["text"]


def test_known_texts_get_the_codes_that_they_have(recommender: Recommender, tiny_run: Path) -> None:
    encoder = open_it(tiny_run / "tokenizer", recommender)
    items = pl.read_parquet(tiny_run / "data" / "items.parquet")
    vectors = encoder.embed_texts(items["text"].to_list())
    rows = encoder.tokenizer.find_rows(items["item_id"].to_list())
    raw = encoder.tokenizer.raw_codes
    assert raw is not None
    assert (encoder.tokenizer.quantize(vectors) == raw[rows]).all(axis=1).mean() > 0.9


def test_inputs_are_found_beside_the_tokenizer(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    moved = move_run(tiny_run, tmp_path, "data", "embeddings", "tokenizer", "model")
    break_link(moved)
    assert not find_sources(moved / "tokenizer").missing
    assert find_sources(moved / "tokenizer").data_folder == moved / "data"
    store = open_store(tmp_path / "store", recommender, model=moved / "model")
    assert store.add_items([NewItem("lamp", "Lamp")]).entries[0][2] == "added"
    store.close()


def test_a_version_with_items_removed_is_followed_to_the_first(
    tiny_run: Path, tmp_path: Path
) -> None:
    remove_from_artifact(tiny_run / "tokenizer", ["B0001"], tmp_path / "less")
    remove_from_artifact(tmp_path / "less", ["B0002"], tmp_path / "lesser")
    sources = find_sources(tmp_path / "lesser")
    assert sources.embed is not None and sources.data is not None and not sources.missing
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "lesser")
    encoder = ItemEncoder(tokenizer, sources)
    assert list(encoder.retired) == ["B0001", "B0002"]
    shutil.rmtree(tmp_path / "less")
    assert "the tokenize artefact" in find_sources(tmp_path / "lesser").missing


def test_what_is_missing_is_said_where_it_is_needed(
    recommender: Recommender, tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = move_run(tiny_run, tmp_path / "a", "embeddings", "tokenizer")
    break_link(moved)
    shutil.rmtree(moved / "embeddings")
    store = open_store(tmp_path / "store", recommender, moved / "tokenizer")
    assert "only `embedding` is taken: the embed artefact" in caplog.text
    with pytest.raises(DataError, match=r"cannot embed texts: the embed .*16 numbers"):
        store.add_items([NewItem("lamp", "Lamp")])
    given = NewItem("lamp", "Lamp", embedding=[0.5] * 16)
    assert store.add_items([given]).entries[0][2] == "added"
    with pytest.raises(DataError, match="cannot embed texts"):
        store.encode_texts(["Lamp"])
    store.close()

    moved = move_run(tiny_run, tmp_path / "b", "embeddings", "tokenizer")
    break_link(moved)
    assert "the data artefact" in find_sources(moved / "tokenizer").missing
    (moved / "data").mkdir()
    shutil.copy(tiny_run / "data" / "manifest.json", moved / "data")
    encoder = open_it(moved / "tokenizer", recommender)
    assert encoder.can_render  # the manifest is enough for that, but not for lsa
    with pytest.raises(DataError, match=r"needs the items' texts, and .*items.parquet cannot"):
        encoder.embed_texts(["Lamp"])


def test_a_saved_tokenizer_knows_nothing_of_embeddings(tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = SemanticIdTokenizer.from_pretrained(tiny_run / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "does not say" in find_sources(tmp_path / "saved").missing


def test_another_encoder_is_found_out(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    moved = move_run(tiny_run, tmp_path, "data", "embeddings", "tokenizer")
    break_link(moved)
    items = pl.read_parquet(moved / "data" / "items.parquet")
    mixed = items.with_columns(pl.col("text").reverse())
    mixed.write_parquet(moved / "data" / "items.parquet")
    encoder = open_it(moved / "tokenizer", recommender)
    with pytest.raises(DataError, match=r"of 60 items .* gives only \d+%.*`embedding`"):
        encoder.embed_texts(["Lamp"])


def test_another_tokenizer_is_refused_or_left_alone(
    recommender: Recommender, tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remove_from_artifact(tiny_run / "tokenizer", ["B0001"], tmp_path / "less")
    with pytest.raises(ModelError, match=r"not the tokenizer .*: 1 of the model's 60 .* names 59"):
        open_store(tmp_path / "store", recommender, tmp_path / "less")
    with pytest.raises(ArtifactError, match=r"does not exist|is no"):
        open_store(tmp_path / "store", recommender, tmp_path / "nothing")
    moved = move_run(tiny_run, tmp_path / "run", "tokenizer", "model")
    break_link(moved)
    (moved / "tokenizer" / "codes.parquet").write_bytes(b"")
    store = open_store(tmp_path / "store", recommender, model=moved / "model")
    assert "new items cannot be added" in caplog.text
    with pytest.raises(DataError, match=r"(?s)needs codes, and .*codes\.parquet"):
        store.add_items([NewItem("lamp", "Lamp")])
    store.close()
    shutil.rmtree(moved / "tokenizer")
    (tmp_path / "bare").mkdir()
    for model in (moved / "model", tmp_path / "bare"):
        store = open_store(tmp_path / "store", recommender, model=model)
        with pytest.raises(DataError, match="started without the model's tokenizer"):
            store.add_items([NewItem("lamp", "Lamp")])
        store.close()


def fit_small(**values: object) -> SemanticIdTokenizer:
    recipe = TokenizeRecipe.model_validate({"quantizer": "rqkmeans", "seed": 1} | values)
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    needs_vectors = "vectors" in find_quantizer(recipe).find_needs(recipe)
    ids = tuple(f"i{row}" for row in range(40))
    given = FitInput(ids, vectors if needs_vectors else None)
    return fit_tokenizer(recipe, given).tokenizer


def test_a_level_that_only_tells_items_apart_says_nothing_of_a_text(tiny_run: Path) -> None:
    tokenizer = fit_small(codebook_sizes=[4, 4], unique="suffix", uniqueness={"suffix_room": 4})
    assert tokenizer.n_levels == 3
    encoder = ItemEncoder(tokenizer, find_sources(tiny_run / "tokenizer"))
    encoder.__dict__["_encoder"] = LengthEncoder()
    sids = encoder.encode_texts(["a", "bb"])
    assert all(sid.endswith("<c_0>") and sid.count("<") == 3 for sid in sids)
    vectors = np.ones((3, 4), dtype=np.float32)
    codes = encoder.code_items(["x", "y", "z"], vectors, tokenizer.codes)
    assert len({tuple(row) for row in codes.tolist()}) == 3
    assert not {tuple(row) for row in codes.tolist()} & set(map(tuple, tokenizer.codes.tolist()))


class LengthEncoder:
    digest = "length"

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text)] * 4 for text in texts], dtype=np.float32)


def test_codes_that_come_from_no_vector(tmp_path: Path) -> None:
    tokenizer = fit_small(quantizer="random", codebook_sizes=[8, 8])
    encoder = ItemEncoder(tokenizer, Sources())
    codes = encoder.code_items(["x", "y"], None, tokenizer.codes)
    assert not set(map(tuple, codes.tolist())) & set(map(tuple, tokenizer.codes.tolist()))
    with pytest.raises(DataError, match="'random' do not come from texts"):
        encoder.embed_texts(["x"])
    with pytest.raises(DataError, match="'random' do not come from texts"):
        encoder.render_text({"title": "x"})


def test_a_quantizer_that_needs_more_than_text_is_refused() -> None:
    tokenizer = fit_small(codebook_sizes=[4, 4, 4])
    recipe = TokenizeRecipe(quantizer="sequential")
    object.__setattr__(tokenizer.fitted, "recipe", recipe)
    with pytest.raises(DataError, match=r"'sequential' needs more of an item.*genrec tokenize add"):
        ItemEncoder(tokenizer, Sources())


def test_an_encoder_that_cannot_place_later_texts_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bound:
        digest = ""

        def encode_texts(self, texts: list[str]) -> np.ndarray:
            raise AssertionError

    from genrec.tokenizers.embedding import encoder as module

    monkeypatch.setitem(module.ENCODERS, "lsa", lambda recipe: Bound())
    with pytest.raises(DataError, match="'lsa' gives a text a vector that depends on all others"):
        build_later_encoder(EmbedRecipe(), list)
    monkeypatch.setitem(module.ENCODERS, "lsa", lambda recipe: LengthEncoder())
    assert build_later_encoder(EmbedRecipe(), list).digest == "length"

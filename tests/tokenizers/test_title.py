from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as draw
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from genrec.decode.trie import Trie
from genrec.errors import ArtifactError, DataError, ModelError, TemplateError
from genrec.prompts.corpus import read_corpus
from genrec.prompts.library import build_library
from genrec.prompts.plan import plan_train
from genrec.prompts.recipe import PromptsRecipe
from genrec.tokenizers.quantizers import title as module
from genrec.tokenizers.quantizers.title import Title, make_distinct
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import make_tokenizer
from genrec.train.corpus import train_tokenizer

from .made_data import make_given, write_data

TITLES = [
    "Red Pen",
    "red pen",
    "Red Pen",
    "Red",
    "Red Pen (2)",
    "",
    "Café-au-lait 500ml!",
    "🎸 amp",
]


def build_recipe(**values: object) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate({"quantizer": "title", "title": values})


def fit_titles(
    folder: Path, titles: list[str | None], **values: object
) -> tuple[Title, list[str], Any]:
    data = write_data(folder / "data", len(titles), columns={"title": titles})
    given = make_given(data)
    fitted = Title(build_recipe(**values), 0)
    fitted.fit(given)
    return fitted, fitted.spell_codes(fitted.encode(given)), given


@pytest.fixture(scope="module")
def model_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that knows a few words."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(["Red Pen red pen", "Café-au-lait"] * 20, (), 300).save_pretrained(folder)
    return folder


def test_titles_are_their_own_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="genrec"):
        fitted, spelled, given = fit_titles(tmp_path, list(TITLES))
    expected = ["Red Pen", "red pen", "Red Pen (3)", "Red", "Red Pen (2)", "item-5", *TITLES[6:]]
    assert spelled == expected
    assert "1 items have no title and are named by their ids" in caplog.text
    codes = fitted.encode(given)
    assert len(set(fitted.codebook_sizes)) == 1
    assert (codes[:, -1] == 0).all(), "the end is in every sequence, so none begins another"
    assert Trie.from_codes(codes).n_items == len(TITLES)


@draw(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1))
def test_any_titles_become_distinct_and_join_again(titles: list[str]) -> None:
    names = make_distinct(titles)
    assert len(set(names)) == len(titles)
    assert all(name.startswith(title) for name, title in zip(names, titles, strict=True))
    assert all("".join(module._WORD.findall(name)) == name for name in names)
    firsts = {title: name for title, name in reversed(list(zip(titles, names, strict=True)))}
    assert all(title == name for title, name in firsts.items()), "the first keeps its own text"


def test_new_titles_avoid_those_that_are_given_out() -> None:
    assert make_distinct(["a", "a", "b"], ["a", "a (2)"]) == ["a (3)", "a (4)", "b"]


def test_long_titles_are_cut_and_case_can_be_folded(tmp_path: Path) -> None:
    titles: list[str | None] = ["One two three four", "ONE two three five"]
    spelled = fit_titles(tmp_path, titles, max_tokens=3, lowercase=True)[1]
    assert spelled == ["one two three", "one two three (2)"]


def test_new_items_are_written_in_known_tokens(tmp_path: Path) -> None:
    fitted = fit_titles(tmp_path, ["Red Pen 3", "Blue Ink", "(2)"])[0]
    titles = ["", "", "", "Blue Ink", "Red Ink", "Green Pen", "Red Pen Blue Ink Red"]
    later = make_given(write_data(tmp_path / "new", 7, columns={"title": titles}))
    codes = fitted.encode(later.select_items(np.array([4, 0])))
    assert fitted.spell_codes(codes) == ["Red Ink", "Red Pen 3"]
    with pytest.raises(DataError, match="cannot be written in the fitted titles' tok") as caught:
        fitted.encode(later)
    assert "'item-3': no fitted title holds ' '" in str(caught.value), "from Blue Ink (2)"
    assert "'item-5': no fitted title holds 'Green'" in str(caught.value)
    assert "'item-6': no fitted title holds ' Blue'" in str(caught.value)
    long = make_given(write_data(tmp_path / "long", 4, columns={"title": ["Red Ink Pen Pen"] * 4}))
    with pytest.raises(DataError, match="'item-3': 4 tokens, but the longest title has 3"):
        fitted.encode(long.select_items(np.array([3])))


def test_a_models_tokens_can_be_the_parts(tmp_path: Path, model_tokenizer: Path) -> None:
    fitted, spelled, given = fit_titles(tmp_path, list(TITLES), tokenizer=str(model_tokenizer))
    assert spelled[0] == "Red Pen"
    assert spelled[6:] == TITLES[6:]
    codes = fitted.encode(given)
    cut = PreTrainedTokenizerFast.from_pretrained(model_tokenizer)
    assert (codes[3] > 0).sum() == len(cut("Red", add_special_tokens=False)["input_ids"])
    again = Title(build_recipe(tokenizer=str(model_tokenizer)), 0)
    again.restore_weights(fitted.list_weights())
    np.testing.assert_array_equal(again.encode(given), codes)


def test_a_tokenizer_that_cannot_be_used_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"(?s)'\S+nowhere' cannot be loaded.*tokenizer=words"):
        fit_titles(tmp_path, ["a"], tokenizer=str(tmp_path / "nowhere"))

    class Slow:
        is_fast = False

        @classmethod
        def from_pretrained(cls, name: str) -> Slow:
            assert name == "slow"
            return cls()

    monkeypatch.setattr("transformers.AutoTokenizer", Slow)
    with pytest.raises(ModelError, match=r"'slow' has no tokenizer\.json"):
        fit_titles(tmp_path / "again", ["a"], tokenizer="slow")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    fitted = fit_titles(tmp_path, ["a"])[0]
    weights = fitted.list_weights()
    del weights["title.tokens"]
    with pytest.raises(ArtifactError, match="are not those of 'title'"):
        Title(build_recipe(), 0).restore_weights(weights)


def test_rows_show_no_ids_where_ids_are_titles(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3, columns={"title": ["a", "b", "<a_1>"]})
    make_tokenizer(build_recipe(), None, tmp_path / "tokenizer", data=data)
    given = make_given(data)
    corpus, _ = read_corpus(PromptsRecipe(), given.catalogue, tmp_path / "tokenizer")
    assert corpus.sids == ["", "", ""] and not corpus.has_sids
    library = build_library(
        PromptsRecipe(
            templates=("sequential", "items", "next-title"), recommend_template="next-title-shop"
        )
    )
    with pytest.raises(TemplateError, match=r"IDs are titles.*use templates of titles") as caught:
        plan_train(corpus, library, PromptsRecipe())
    assert "template 'sequential-chosen-so-far' shows history, sid" in str(caught.value)
    assert "next-title" not in str(caught.value)

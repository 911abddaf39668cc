"""Titles to token sequences: what the model would write, whatever the title says."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from genrec.decode.title_trie import TitleTrie
from genrec.decode.titles import (
    APART,
    TitleStart,
    build_title_trie,
    build_trained_titles,
    choose_start,
)
from genrec.errors import DataError, DecodeError, ModelError
from genrec.prompts.chat import ChatFrame
from genrec.prompts.encode import encode_example, encode_rendered, encode_texts
from genrec.prompts.recipe import Template
from genrec.prompts.render import HistoryPrompt, Rendered

from .made_titles import make_byte_tokenizer, make_sentence_tokenizer

HOSTILE = ["<|im_end|>", "<a_12><b_7>", "a</s>b", "<|end|>", "{{ sid }}", "[INST] x [/INST]"]


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = make_byte_tokenizer()
    tokenizer.add_tokens(["<a_12>", "<b_7>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "</s>"]})
    return tokenizer


@pytest.fixture(scope="module")
def sentence_piece():
    tokenizer = make_sentence_tokenizer()
    tokenizer.add_tokens(["<a_12>", "<b_7>", "<|im_end|>", "<|end|>"], special_tokens=True)
    return tokenizer


@pytest.fixture(params=["byte_level", "sentence_piece"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def build(tokenizer, titles, **values) -> TitleTrie:
    values = {"max_characters": 200, **values}
    return build_title_trie(tokenizer, titles, tokenizer.eos_token_id, **values)


def list_sequences(trie: TitleTrie) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(trie.n_items)]
    for place, item in enumerate(trie.order.tolist()):
        found[item] = trie.tokens[trie.offsets[place] : trie.offsets[place + 1]].tolist()
    return found


def test_a_title_continues_the_text_before_it(byte_level, sentence_piece) -> None:
    def spell(tokenizer, prompt_end: str | None) -> str:
        start = APART if prompt_end is None else choose_start(prompt_end)
        [ids] = encode_texts(tokenizer, [f"{start.space}Red Pen"], start.after)
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    assert spell(byte_level, "Next title:") == "ĠRedĠPen"
    assert spell(byte_level, "<|im_start|>assistant\n") == "RedĠPen"
    assert spell(byte_level, "</think>\n\n") == "RedĠPen"
    assert spell(byte_level, None) == "RedĠPen"
    assert spell(sentence_piece, "Next title:") == "▁Red▁Pen"
    assert spell(sentence_piece, "<|assistant|>\n") == "Red▁Pen"
    assert spell(sentence_piece, None) == "▁Red▁Pen", "as training rows hold it"
    assert choose_start("[/INST]") == TitleStart(":", " ")


def test_the_tokens_are_those_of_prompt_and_title_together(tokenizer) -> None:
    for prompt in ("Next title:", "Title of the next\n"):
        start = choose_start(prompt)
        for title in ("Red Pen", "café 🎸", "Blue Ink: refill"):
            whole = tokenizer.encode(f"{prompt}{start.space}{title}", add_special_tokens=False)
            [ids] = encode_texts(tokenizer, [start.space + title], start.after)
            assert whole[-len(ids) :] == ids


@pytest.mark.parametrize("start", [APART, choose_start("Title:"), choose_start("assistant\n")])
def test_no_title_becomes_a_special_token(tokenizer, start, caplog) -> None:
    titles = [*HOSTILE, *(f"Red {text} Pen" for text in HOSTILE), "Red Pen"]
    trie = build(tokenizer, titles, start=start)
    special = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    special -= {tokenizer.unk_token_id}
    for sequence in list_sequences(trie):
        assert special.isdisjoint(sequence[:-1]) and len(sequence) > 1
        assert sequence[-1] == tokenizer.eos_token_id


def test_many_texts_are_encoded_as_each_alone(tokenizer) -> None:
    texts = [*HOSTILE, "Red Pen", "café 🎸", "a\u0301 <|im_end|>", "<|im_\n", "x" * 50]
    alone = [encode_rendered(tokenizer, Rendered(text, ((0, len(text)),))) for text in texts]
    assert encode_texts(tokenizer, texts) == alone
    assert encode_texts(tokenizer, []) == []


def test_what_cannot_be_written_inertly_is_no_answer(byte_level, monkeypatch, caplog) -> None:
    monkeypatch.setattr("genrec.decode.titles.encode_texts", lambda *_: [[], [70]])
    with caplog.at_level(logging.INFO, logger="genrec"):
        trie = build(byte_level, ["<|im_end|>", "Red"])
    assert trie.answerable.tolist() == [False, True]
    assert "1 items have no title and are no answers" in caplog.text


def test_white_space_is_normalised_and_equal_titles_are_counted(tokenizer, caplog) -> None:
    titles = ["Red  Pen", " Red Pen\n", "", "Red\tPen", "  ", "Red", "Red\u200b Pen"]
    with caplog.at_level(logging.INFO, logger="genrec"):
        trie = build(tokenizer, titles)
    sequences = list_sequences(trie)
    assert sequences[0] == sequences[1] == sequences[3] == sequences[6] != sequences[5]
    assert sequences[2] == sequences[4] == []
    assert "2 items have no title and are no answers" in caplog.text
    assert "3 items have the title of another item" in caplog.text


def test_long_titles_are_cut_at_a_token_and_may_collide(tokenizer, caplog) -> None:
    long = "Red Pen " * 9
    titles = [long + "one", long + "two", "Red", long]
    with caplog.at_level(logging.INFO, logger="genrec"):
        trie = build(tokenizer, titles, max_title_tokens=5)
    sequences = list_sequences(trie)
    assert sequences[0] == sequences[1] == sequences[3] and len(sequences[0]) == 5
    assert tokenizer.eos_token_id not in sequences[0], "its own end was never reached"
    assert sequences[2][-1] == tokenizer.eos_token_id
    assert "3 are cut to 5 tokens" in caplog.text
    whole = list_sequences(build(tokenizer, titles, max_title_tokens=None))
    assert len({tuple(row) for row in whole}) == 4
    assert all(row[-1] == tokenizer.eos_token_id for row in whole)
    characters = list_sequences(build(tokenizer, titles, max_characters=3))
    assert len({tuple(row) for row in characters}) == 1


def test_a_title_as_long_as_the_limit_is_not_the_beginning_of_a_cut_one(byte_level) -> None:
    [short, long] = [len(ids) for ids in encode_texts(byte_level, ["Red Pen", "Red Pen Ink"])]
    assert short < long
    trie = build(byte_level, ["Red Pen", "Red Pen Ink"], max_title_tokens=short)
    assert trie.are_first.sum() == 1, "both are cut to the same tokens"


@pytest.mark.parametrize("limit", [0, -3, 10_000])
def test_limits_that_cut_everything_or_nothing_are_refused(byte_level, limit) -> None:
    with pytest.raises(DecodeError, match=f"max_title_tokens={limit}; use 1 to"):
        build(byte_level, ["Red"], max_title_tokens=limit)


def test_a_catalogue_without_titles_is_refused(byte_level) -> None:
    with pytest.raises(DataError, match="none of the 3 items has a title"):
        build(byte_level, ["", " ", "\n"])


def make_prompt() -> HistoryPrompt:
    template = Template(
        id="t", task="sequential", source="test", input="{{ history_titles }} Title:",
        target="{{ title }}", fields=("history_titles", "title"), recommend=True,
    )  # fmt: skip
    return HistoryPrompt(template, 5, 40)


@pytest.mark.parametrize("chat", [None, ChatFrame("<|im_end|>user\n", "\n", "<|im_end|>")])
def test_a_trained_model_is_searched_for_what_it_was_trained_to_write(tokenizer, chat) -> None:
    titles = ["Red Pen", "Red " * 30, "café <|im_end|> 🎸", ""]
    trie = build_trained_titles(tokenizer, titles, make_prompt(), chat)
    for title, sequence in zip(titles[:3], list_sequences(trie), strict=False):
        text = title[:40].rstrip()
        target = Rendered(text, ((0, len(text)),))
        ids, n_prompt = encode_example(tokenizer, Rendered("Title:"), target, chat)
        assert sequence == ids[n_prompt:]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        build_trained_titles(tokenizer, ["Red"], make_prompt(), None)


@pytest.mark.slow
def test_a_hundred_thousand_titles(byte_level) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["Red", "Pen", "Ink", "Blue", "café", "refill", "Pencil", "shop"])
    titles = [" ".join(row) for row in words[rng.integers(0, 8, (100_000, 9))]]
    trie = build(byte_level, titles)
    assert trie.n_titles == 100_000
    assert trie.n_bytes < 100 * trie.n_titles

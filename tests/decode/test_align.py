"""Prompts in whole blocks: what is filled up, what is dropped, and what stays as it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.decode.align import Aligner, Padding, drop_oldest, find_padding, read_padding
from genrec.errors import ModelError, RecipeError

BLOCKS = SimpleNamespace(block_tokens=8)


class Prompt:
    """Words, a history of items of different lengths, more words."""

    def __init__(self, lengths, before=3, after=2) -> None:
        self.items = [[100 + number] * length for number, length in enumerate(lengths)]
        self.before, self.after = [1] * before, [2] * after

    def encode(self, n_dropped: int) -> list[int]:
        shown = [token for item in self.items[n_dropped:] for token in item]
        return [*self.before, *shown, *self.after]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    before=st.integers(0, 20),
    block=st.integers(1, 16),
)
def test_dropping_keeps_whole_blocks_and_the_newest_items(lengths, before, block):
    prompt = Prompt(lengths, before)
    free = prompt.encode(0)
    cut = drop_oldest(prompt.encode, len(lengths), block)
    n_blocks = len(free) // block
    assert len(cut) // block == n_blocks, "as many blocks as before"
    dropped = next(n for n in range(len(lengths)) if prompt.encode(n) == cut)
    assert dropped < len(lengths), "an item stays"
    if len(free) % block == 0 or n_blocks == 0:
        assert cut == free, "nothing dropped, nothing changed"
    if n_blocks and dropped + 1 < len(lengths):
        assert len(prompt.encode(dropped + 1)) < n_blocks * block, "all that could go"


@given(length=st.integers(1, 100), block=st.integers(1, 32))
def test_padding_fills_the_last_block_and_touches_no_token(length, block):
    prompt = list(range(length))
    padded = Padding(block, 7).pad(prompt)
    assert padded[:length] == prompt and len(padded) % block == 0
    assert len(padded) - length < block and set(padded[length:]) <= {7}
    if length % block == 0:
        assert padded == prompt


def test_a_trained_padding_is_used_whatever_else_is_wanted():
    prompt = Prompt([4, 4, 4])
    for align in ("keep", "drop"):
        aligner = Aligner.choose(Padding(16, 7), align, BLOCKS)
        assert aligner.align(prompt.encode, 3, 10) == [*prompt.encode(0), *[7] * 15]


def test_without_padding_nothing_changes_unless_the_user_wants_it():
    prompt = Prompt([4, 4, 4])
    assert Aligner.choose(None, "keep", BLOCKS).align(prompt.encode, 3, 10) == prompt.encode(0)
    assert Aligner().align(prompt.encode, 3, 10) == prompt.encode(0)
    drops = Aligner.choose(None, "drop", BLOCKS)
    assert drops.align(prompt.encode, 3, 10) == prompt.encode(0), "17 - 4 is less than 16"
    prompt = Prompt([4, 4, 4, 1])
    assert drops.align(prompt.encode, 4, 10) == prompt.encode(0)
    prompt = Prompt([1, 1, 4, 4, 4])
    assert drops.align(prompt.encode, 5, 10) == prompt.encode(2)


def test_items_that_the_prompt_does_not_show_are_not_counted():
    prompt = Prompt([1] * 30)

    def encode(n_dropped):  # shows the newest ten
        return prompt.encode(max(n_dropped, 20))

    cut = Aligner(None, 8).align(encode, 30, 10)
    assert cut == encode(27) and len(cut) == 8


@pytest.mark.parametrize(
    ("align", "engine", "message"),
    [
        ("dorp", BLOCKS, "align='dorp' is unknown; did you mean 'drop'"),
        ("drop", object(), "a object keeps none in blocks; use engine vllm"),
    ],
)
def test_wishes_that_mean_nothing(align, engine, message):
    with pytest.raises(RecipeError, match=message):
        Aligner.choose(None, align, engine)


def test_a_padding_in_settings():
    padding = Padding(32, 5)
    assert read_padding(padding.as_record()) == padding and read_padding(None) is None


@pytest.mark.parametrize(
    "record", [{}, {"block_tokens": 0, "token_id": 1}, {"block_tokens": "x", "token_id": 1}]
)
def test_a_padding_that_is_not_complete(record):
    with pytest.raises(ModelError, match="padding must hold block_tokens above 0 and a token_id"):
        read_padding(record)


class Tokenizer:
    name_or_path, unk_token_id = "tiny", 0

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert text == "\n" and not add_special_tokens
        return self.ids


def test_a_line_break_fills():
    assert find_padding(0, Tokenizer()) is None
    assert find_padding(32, Tokenizer(29871, 13)) == Padding(32, 13)
    for tokenizer in (Tokenizer(), Tokenizer(0)):
        with pytest.raises(ModelError, match="'tiny' has no token for a line break"):
            find_padding(32, tokenizer)

"""Titles as the token sequences that a language model would answer with.

Owns what of a title is decoded: its cleaned text, in the tokens that continue a prompt, cut where
it is too long, and ended. Knows no search and no model's weights.

Text from data is data: a title that spells a special token is broken up, as in prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genrec.decode.title_trie import MOST_TOKENS, TitleTrie
from genrec.errors import DecodeError
from genrec.prompts.chat import ChatFrame
from genrec.prompts.encode import encode_texts, find_end_token
from genrec.prompts.render import HistoryPrompt, clean_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TITLE_TOKENS = 64
_BATCH_TITLES = 20_000
# What a space is written behind, to see how a tokenizer joins it to a title's first word.
_ANCHOR = ":"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TitleStart:
    """How a title's first token is written.

    Attributes:
        after: what the model has read right before it: a title's tokens are those that continue it.
        space: what it writes before the title itself.
    """

    after: str = ""
    space: str = ""


APART = TitleStart()
"""Of a model that was trained on titles: its rows hold prompt and title encoded apart."""


def choose_start(prompt_end: str) -> TitleStart:
    """How an untuned model begins a title behind a text.

    Behind white space, such as the line break that most chat templates end in, with the title
    itself; behind anything else with a space. A byte-level tokenizer makes that space part of the
    first token (` Red`), a SentencePiece one writes every word that begins so (`▁Red`) and a word
    behind a line break without (`Red`).

    Args:
        prompt_end: what the model has read before it answers.
    """
    white = prompt_end[len(prompt_end.rstrip()) :]
    return TitleStart(white) if white else TitleStart(_ANCHOR, " ")


def build_title_trie(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    end_token: int,
    *,
    start: TitleStart = APART,
    max_characters: int,
    max_title_tokens: int | None = MAX_TITLE_TOKENS,
) -> TitleTrie:
    """The trie of a catalogue's titles, item_index being the place in `titles`.

    White space is normalised and invisible characters go, as in prompts. Items whose titles are
    then equal share their leaf. An item without a title has none, and is no answer.

    Args:
        tokenizer: the language model's.
        titles: N texts.
        end_token: the token that ends an answer.
        start: how the first token is written.
        max_characters: the longest that a title may be; the rest is cut.
        max_title_tokens: a sequence, end token included, is cut behind so many tokens, and has no
            end token then. Titles that begin alike may so become equal. None cuts nothing.

    Raises:
        DataError: no item has a title.
        DecodeError: fewer than one token.
    """
    most = MOST_TOKENS if max_title_tokens is None else max_title_tokens
    if not 1 <= most <= MOST_TOKENS:
        raise DecodeError(f"max_title_tokens={most}; use 1 to {MOST_TOKENS}")
    flat: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    lengths = np.zeros(len(titles), dtype=np.int64)
    n_cut = 0
    for first in range(0, len(titles), _BATCH_TITLES):
        batch = titles[first : first + _BATCH_TITLES]
        texts = [clean_text(title, max_characters) for title in batch]
        named = [row for row, text in enumerate(texts) if text]
        encoded = encode_texts(tokenizer, [start.space + texts[row] for row in named], start.after)
        for row, ids in zip(named, encoded, strict=True):
            if not ids:  # nothing of it could be written without spelling a special token
                continue
            n_cut += len(ids) + 1 > most
            sequence = [*ids, end_token][:most]
            lengths[first + row] = len(sequence)
            flat.append(np.array(sequence, dtype=np.int32))
    tokens = np.concatenate(flat) if flat else np.empty(0, dtype=np.int32)
    trie = TitleTrie.from_sequences(tokens, lengths)
    _tell_titles(trie, n_cut, most)
    return trie


def build_trained_titles(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    prompt: HistoryPrompt,
    chat: ChatFrame | None,
) -> TitleTrie:
    """The trie of what a model writes that was trained with this prompt: whole rows' targets.

    Args:
        tokenizer: the language model's.
        titles: N texts.
        prompt: whose limit of characters the rows were written with.
        chat: the frame that its rows stood in, whose end token ended them.

    Raises:
        DataError: no item has a title.
        ModelError: the tokenizer has no end token.
    """
    return build_title_trie(
        tokenizer,
        titles,
        find_end_token(tokenizer, chat),
        max_characters=prompt.max_text_characters,
        max_title_tokens=None,
    )


def _tell_titles(trie: TitleTrie, n_cut: int, most: int) -> None:
    untitled = trie.n_items - trie.n_titles
    if untitled:
        _log.info("titles: %s items have no title and are no answers", f"{untitled:,}")
    shared = int(trie.n_titles - np.count_nonzero(trie.are_first))
    if shared:
        _log.info("titles: %s items have the title of another item", f"{shared:,}")
    if n_cut:
        _log.info("titles: %s are cut to %d tokens", f"{n_cut:,}", most)

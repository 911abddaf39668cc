"""Token ids of rendered prompts, with text from data made inert.

Owns the boundary between text and the language model's vocabulary: no character of data ever
becomes a special or added token, whatever the tokenizer. Training and inference share it. Knows no
template and no dataset.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genrec.errors import ModelError
from genrec.prompts.chat import ChatFrame
from genrec.prompts.hostile import Breaker, make_breaker, space_characters, space_punctuation
from genrec.prompts.render import HistoryPrompt, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Piece = tuple[str, bool]  # text, and whether it came from data


@dataclass(frozen=True, slots=True)
class _Guard:
    """What must not arise from data, for one tokenizer in one state.

    Attributes:
        version: changes when tokens are added to the tokenizer.
        hostile: the ids of all added and special tokens, but for the unknown token: it says only
            that a character is not in the vocabulary, and its own name is broken up like any other.
        breaker: breaks up the strings of these tokens.
    """

    version: tuple[int, tuple[int, ...]]
    hostile: frozenset[int]
    breaker: Breaker


_guards: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Guard] = weakref.WeakKeyDictionary()


def encode_rendered(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> list[int]:
    """The token ids of a rendered text, without begin or end token.

    Strings in data that spell a token are broken up, and the ids are checked afterwards. Where a
    tokenizer makes a token from data all the same (a normaliser that lowers case or folds wide
    characters, a token that begins in the template and ends in the data), the pieces are encoded
    apart, the data in ever smaller ones, and dropped rather than let through.

    Args:
        tokenizer: any Hugging Face tokenizer, semantic-id tokens already added.
        rendered: text and the character ranges of it that came from data.
    """
    if not rendered.spans:
        return _encode_text(tokenizer, rendered.text)
    guard = _find_guard(tokenizer)
    pieces = [
        (guard.breaker.break_text(text) if from_data else text, from_data)
        for text, from_data in _split_pieces(rendered)
    ]
    ids = _encode_text(tokenizer, "".join(text for text, _ in pieces))
    if guard.hostile.isdisjoint(ids) or _is_inert(tokenizer, guard, pieces, ids):
        return ids
    return _encode_apart(tokenizer, guard, _split_pieces(rendered))


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], after: str = ""
) -> list[list[int]]:
    """The token ids of texts that are data all through, as `encode_rendered` makes them.

    One call of a fast tokenizer costs a tenth of as many single ones.

    Args:
        tokenizer: any Hugging Face tokenizer.
        texts: any number, none of them empty.
        after: what stands before each of them: the ids are those that continue it. Where a
            tokenizer joins the two into one token, the text is encoded alone.
    """
    if not texts:
        return []
    guard = _find_guard(tokenizer)
    lead = _encode_text(tokenizer, after) if after else []
    broken = [f"{after}{guard.breaker.break_text(text)}" for text in texts]
    encoded = tokenizer(
        broken, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    result = []
    for text, ids in zip(texts, encoded, strict=True):
        own = list(ids[len(lead) :])
        if ids[: len(lead)] != lead or not own or not guard.hostile.isdisjoint(own):
            own = encode_rendered(tokenizer, Rendered(text, ((0, len(text)),)))
        result.append(own)
    return result


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, chat: ChatFrame | None = None
) -> list[int]:
    """The token ids of a prompt, after the begin token if the tokenizer has one.

    Args:
        tokenizer: the language model's.
        rendered: the prompt.
        chat: the frame it stands in, which brings its own begin token; None is plain text.
    """
    if chat is not None:
        return encode_rendered(tokenizer, chat.wrap(rendered))
    return [*_begin_plain(tokenizer), *encode_rendered(tokenizer, rendered)]


def encode_history(
    tokenizer: PreTrainedTokenizerBase,
    prompt: HistoryPrompt,
    sids: Sequence[str],
    titles: Sequence[str],
    chat: ChatFrame | None = None,
    user_sid: str = "",
) -> list[int]:
    """The token ids that ask for a user's next item, wherever it is asked.

    Args:
        tokenizer: the language model's.
        prompt: how the question is worded.
        sids: the history's semantic ids, oldest first.
        titles: the same items' titles.
        chat: the frame the model was trained with.
        user_sid: the user's semantic ids, where the prompt names the user.
    """
    return encode_prompt(tokenizer, prompt.render(sids, titles, user_sid=user_sid), chat)


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Rendered,
    target: Rendered,
    chat: ChatFrame | None = None,
) -> tuple[list[int], int]:
    """The token ids of a training row, and how many of them are the prompt.

    The row is prompt, target and end token, the prompt as `encode_prompt` makes it.

    Raises:
        ModelError: the tokenizer has no end token, so that no answer could ever end.
    """
    end = find_end_token(tokenizer, chat)
    prompt_ids = encode_prompt(tokenizer, prompt, chat)
    return [*prompt_ids, *encode_rendered(tokenizer, target), end], len(prompt_ids)


def encode_plain(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    chat: ChatFrame | None = None,
) -> list[tuple[list[int], int]]:
    """What `encode_example` gives for rows without text from data, all at once.

    They need no guard, and one call of a fast tokenizer costs a tenth of as many single ones.
    """
    end = find_end_token(tokenizer, chat)
    if chat is not None:
        prompts = [chat.wrap(Rendered(prompt)).text for prompt in prompts]
    ids = tokenizer(
        [*prompts, *targets],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    begin = _begin_plain(tokenizer) if chat is None else []
    return [
        ([*begin, *prompt, *target, end], len(begin) + len(prompt))
        for prompt, target in zip(ids[: len(prompts)], ids[len(prompts) :], strict=True)
    ]


def find_end_token(tokenizer: PreTrainedTokenizerBase, chat: ChatFrame | None = None) -> int:
    """The id of the token that ends every target: the chat's, or else the tokenizer's.

    Raises:
        ModelError: there is none.
    """
    end: Any = tokenizer.eos_token_id
    if chat is not None:
        end = tokenizer.convert_tokens_to_ids(chat.end)
    if end is None:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, and every target "
            f"must end with one; set its eos_token"
        )
    return int(end)


def _begin_plain(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    begin = tokenizer.bos_token_id
    return [] if begin is None else [int(begin)]


def _find_guard(tokenizer: PreTrainedTokenizerBase) -> _Guard:
    version = (len(tokenizer), tuple(tokenizer.all_special_ids))
    guard = _guards.get(tokenizer)
    if guard is None or guard.version != version:
        guard = _guards[tokenizer] = _make_guard(tokenizer, version)
    return guard


def _make_guard(tokenizer: PreTrainedTokenizerBase, version: tuple[int, tuple[int, ...]]) -> _Guard:
    added: dict[str, int] = dict(tokenizer.get_added_vocab())
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    hostile = {*added.values(), *special.values()} - {tokenizer.unk_token_id}
    return _Guard(version, frozenset(hostile), make_breaker({*added, *special}))


def _split_pieces(rendered: Rendered) -> list[_Piece]:
    # Ranges that touch become one piece: two harmless values can spell a token together.
    pieces: list[_Piece] = []
    position = 0
    for start, end in sorted((int(start), int(end)) for start, end in rendered.spans):
        if start > position or not pieces or not pieces[-1][1]:
            if start > position:
                pieces.append((rendered.text[position:start], False))
            pieces.append((rendered.text[start:end], True))
        else:
            pieces[-1] = (pieces[-1][0] + rendered.text[position:end], True)
        position = max(position, end)
    if position < len(rendered.text):
        pieces.append((rendered.text[position:], False))
    return pieces


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _is_inert(
    tokenizer: PreTrainedTokenizerBase, guard: _Guard, pieces: list[_Piece], ids: list[int]
) -> bool:
    """Whether every added token among the ids came from the template's own words."""
    if not tokenizer.is_fast:  # no offsets: the template's words alone must make the same tokens
        own = [_encode_text(tokenizer, text) for text, from_data in pieces if not from_data]
        expected = [token for part in own for token in part if token in guard.hostile]
        return expected == [token for token in ids if token in guard.hostile]
    encoded = tokenizer(
        "".join(text for text, _ in pieces),
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    ranges = [
        (start, end)
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
        if token in guard.hostile
    ]
    return not _overlap(ranges, _data_ranges(pieces))


def _data_ranges(pieces: list[_Piece]) -> list[tuple[int, int]]:
    ranges = []
    position = 0
    for text, from_data in pieces:
        if from_data and text:
            ranges.append((position, position + len(text)))
        position += len(text)
    return ranges


def _overlap(tokens: list[tuple[int, int]], data: list[tuple[int, int]]) -> bool:
    # A token without extent counts where it stands, at the edges of data too.
    return any(
        (start < data_end and end > data_start)
        or (start == end and data_start <= start <= data_end)
        for start, end in tokens
        for data_start, data_end in data
    )


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase, guard: _Guard, pieces: list[_Piece]
) -> list[int]:
    ids: list[int] = []
    for text, from_data in pieces:
        ids += _encode_inert(tokenizer, guard, text) if from_data else _encode_text(tokenizer, text)
    return ids


def _encode_inert(tokenizer: PreTrainedTokenizerBase, guard: _Guard, text: str) -> list[int]:
    soften: Callable[[str], str]
    for soften in (guard.breaker.break_text, space_punctuation, space_characters):
        ids = _encode_text(tokenizer, soften(text))
        if guard.hostile.isdisjoint(ids):
            return ids
    return []

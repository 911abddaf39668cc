"""Index files of other projects: item id to a list of tokens, as JSON.

Owns the form that LC-Rec, LETTER and MiniOneRec share, `{"0": ["<a_12>", "<b_7>"], ...}`, and the
checks that a file keeps to it. Knows no quantizer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.errors import DataError, join_problems
from genrec.tokenizers.measures.code_use import CodeTable
from genrec.tokenizers.sid_text import LEVEL_LETTERS, USER_PREFIX, format_token

LARGEST_CODE = 65_535
INDEX_PATTERN = "*index*.json"
_TOKEN = re.compile(rf"<({USER_PREFIX}?)([a-z])_(0|[1-9][0-9]*)>")
_FORM = '{"item id": ["<a_12>", "<b_7>", ...], ...}, the same number of tokens for each item'


@dataclass(frozen=True, slots=True)
class PeerIndex:
    """What an index file says; items may share all their codes.

    Attributes:
        codebook_sizes: the file does not say; the smallest power of two above each level's codes.
        subject: `users` where the tokens are spelled `<ua_12>`.

    Shapes:
        codes: (N, L) int32, row i for `item_ids[i]`.
    """

    item_ids: tuple[str, ...]
    codes: CodeTable
    codebook_sizes: tuple[int, ...]
    subject: str


def find_indexes(folder: Path) -> list[Path]:
    """The index files in a folder, by name.

    Raises:
        DataError: it holds none.
    """
    found = sorted(folder.glob(INDEX_PATTERN))
    if not found:
        raise DataError(
            f"{folder} is neither a tokenizer nor holds an index file ({INDEX_PATTERN}); name a "
            f"directory made by `genrec tokenize`, or a file of the form {_FORM}"
        )
    return found


def read_index(path: Path) -> PeerIndex:
    """The codes of an index file.

    Raises:
        DataError: not a file of that form; all its problems in one message.
    """
    pairs = _read_pairs(path)
    problems = [*_find_repeated(pairs), *_find_misfits(pairs)]
    parsed = [_parse_tokens(tokens) for _, tokens in pairs] if not problems else []
    problems += [
        f"item {item_id!r}: {code}"
        for (item_id, _), code in zip(pairs, parsed, strict=False)
        if isinstance(code, str)
    ]
    prefixes = {code[0] for code in parsed if not isinstance(code, str)}
    if len(prefixes) > 1:
        problems.append(f"tokens of items (<a_0>) and of users (<{USER_PREFIX}a_0>) are mixed")
    if problems:
        raise DataError(join_problems(f"{path} must have the form {_FORM}", problems))
    codes = np.array([code[1] for code in parsed if not isinstance(code, str)], dtype=np.int32)
    sizes = tuple(1 << int(column.max()).bit_length() for column in codes.T)
    subject = "users" if USER_PREFIX in prefixes else "items"
    return PeerIndex(tuple(item_id for item_id, _ in pairs), codes, sizes, subject)


def _read_pairs(path: Path) -> list[tuple[str, Any]]:
    """Keys and values in the file's order, repeated keys included."""
    try:
        text = path.read_text(encoding="utf-8")
        # An object inside comes out as a list of tuples, which is no list of tokens either.
        pairs = json.loads(text, object_pairs_hook=list)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; name an existing index file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON ({error}); it must have the form {_FORM}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise DataError(f"{path} is no JSON object; it must have the form {_FORM}")
    if not pairs:
        raise DataError(f"{path} names no item; it must have the form {_FORM}")
    return pairs


def _find_repeated(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    counts = Counter(item_id for item_id, _ in pairs)
    for item_id, count in counts.items():
        if count > 1:
            yield f"item {item_id!r}: comes {count} times, with codes each time"


def _find_misfits(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """What is no list of tokens, or not as long as most are."""
    lengths = Counter(len(tokens) for _, tokens in pairs if isinstance(tokens, list))
    usual = lengths.most_common(1)[0][0] if lengths else 0
    for item_id, tokens in pairs:
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            yield f"item {item_id!r}: {json.dumps(tokens)[:60]} is no list of tokens"
        elif len(tokens) != usual or not tokens:
            yield f"item {item_id!r}: {len(tokens)} tokens, where most items have {usual}"
    if usual > len(LEVEL_LETTERS):
        yield f"{usual} tokens an item, but levels are letters and there are {len(LEVEL_LETTERS)}"


def _parse_tokens(tokens: list[str]) -> tuple[str, list[int]] | str:
    """The prefix and codes that tokens spell, or what is wrong with them."""
    prefix, codes = "", []
    for level, token in enumerate(tokens):
        match = _TOKEN.fullmatch(token)
        letter = LEVEL_LETTERS[level]
        if match is None or match.group(2) != letter:
            return f"token {level + 1} is {token[:40]!r}, but must be <{letter}_N>"
        if int(match.group(3)) > LARGEST_CODE:
            return f"{token!r} has a code above {LARGEST_CODE:,}"
        if level and match.group(1) != prefix:
            return f"{token!r} is spelled unlike the tokens before it"
        prefix = match.group(1)
        codes.append(int(match.group(3)))
    return prefix, codes


def write_index(path: Path, item_ids: Iterable[str], codes: CodeTable, prefix: str = "") -> None:
    """Write codes in the form that `read_index` reads; read again, they are the same."""
    index = {
        item_id: [format_token(level, code, prefix) for level, code in enumerate(row)]
        for item_id, row in zip(item_ids, codes.tolist(), strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")

"""Training rows whose prompts fill whole blocks, as the prompts of the trained model will.

Owns which rows are filled up: those that are answered with a semantic ID, as recommendations are.
Text tasks stay as they are, and are asked so. What fills, and why, is `decode.align`'s.
"""

from __future__ import annotations

import logging
from itertools import count, takewhile
from typing import Any

import numpy as np

from genrec.decode.align import Padding
from genrec.errors import RecipeError
from genrec.tokenizers.sid_text import format_token
from genrec.train.rows import EncodedRows
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


def list_first_tokens(tokenizer: Any) -> IndexArray:
    """The tokens that a semantic ID begins with.

    Raises:
        RecipeError: the tokenizer has none, as where answers are titles.
    """
    vocabulary = tokenizer.get_vocab()
    names = takewhile(vocabulary.__contains__, (format_token(0, code) for code in count()))
    tokens = np.array([vocabulary[name] for name in names], dtype=np.int64)
    if not len(tokens):
        raise RecipeError(
            "align fills up the prompts of rows that are answered with semantic IDs, and this "
            "model has none; use align: 0"
        )
    return tokens


def pad_rows(
    rows: EncodedRows, padding: Padding, first_tokens: IndexArray, max_tokens: int
) -> EncodedRows:
    """The rows, those filled up that are answered with a semantic ID.

    Args:
        rows: as encoded.
        padding: what fills.
        first_tokens: those of `list_first_tokens`.
        max_tokens: the longest row to keep.

    Raises:
        DataError: no row is left that is short enough.
    """
    ends = rows.offsets[:-1] + rows.prompt_lengths  # where each row's answer begins
    padded = np.isin(rows.tokens[ends], first_tokens)
    missing = np.where(padded, -rows.prompt_lengths % padding.block_tokens, 0).astype(np.int64)
    longer = EncodedRows(
        np.insert(rows.tokens, np.repeat(ends, missing), padding.token_id),
        rows.offsets + np.concatenate([[0], np.cumsum(missing)]),
        (rows.prompt_lengths + missing).astype(np.int32),
        tasks=rows.tasks,
        users=rows.users,
        passes=rows.passes,
        task_names=rows.task_names,
    )
    _log.info(
        "train: align %d adds %.0f%% to the tokens of all rows",
        padding.block_tokens,
        100 * missing.sum() / max(len(rows.tokens), 1),
    )
    grown = f"once their prompts fill blocks of {padding.block_tokens}"
    return longer.drop_longer(max_tokens, grown, f"{grown}; raise max_tokens or lower align")

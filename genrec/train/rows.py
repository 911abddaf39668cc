"""Training rows as token ids.

Owns encoding instructions and keeping them compactly, with what is known of each row. Knows nothing
of batches, models or losses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from genrec.errors import DataError
from genrec.progress import show_progress
from genrec.prompts.chat import ChatFrame
from genrec.prompts.encode import encode_example, encode_plain
from genrec.prompts.render import Rendered
from genrec.types import IndexArray

NO_USER = -1
_READ_ROWS = 1024
_TEXT_COLUMNS = ("prompt", "prompt_spans", "target", "target_spans")
# Artefacts of earlier versions, and hand-made ones, may lack these.
_FACT_COLUMNS = ("task", "user_index", "pass")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row: prompt and target tokens together; the first `n_prompt` are not learnt.

    Attributes:
        input_ids: (T,) int32.
        n_prompt: tokens of the prompt.
        task: its place in `EncodedRows.task_names`.
        user: its user_index, or NO_USER.
    """

    input_ids: NDArray[np.int32]
    n_prompt: int
    task: int = 0
    user: int = NO_USER


class EncodedRows(Dataset[EncodedRow]):
    """All rows of one split, in flat arrays.

    Shapes:
        tokens: (all tokens,) int32; offsets: (rows + 1,) int64; prompt_lengths: (rows,) int32;
        tasks: (rows,) int16; users: (rows,) int64; passes: (rows,) int32.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        offsets: IndexArray,
        prompt_lengths: NDArray[np.int32],
        *,
        tasks: NDArray[np.int16],
        users: IndexArray,
        passes: NDArray[np.int32],
        task_names: tuple[str, ...] = ("",),
    ) -> None:
        """Join the rows' arrays.

        Args:
            tokens: of all rows, one after another.
            offsets: where each row begins, and the end.
            prompt_lengths: how much of each row is prompt.
            tasks: each row's place in `task_names`.
            users: each row's user_index, or NO_USER.
            passes: the pass over the data that each row was drawn for.
            task_names: what the tasks are called.
        """
        self.tokens = tokens
        self.offsets = offsets
        self.prompt_lengths = prompt_lengths
        self.tasks = tasks
        self.users = users
        self.passes = passes
        self.task_names = task_names

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.prompt_lengths)

    def __getitem__(self, index: int) -> EncodedRow:
        """One row; a view, not a copy."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return EncodedRow(
            self.tokens[start:stop],
            int(self.prompt_lengths[index]),
            int(self.tasks[index]),
            int(self.users[index]),
        )

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    def select(self, rows: IndexArray) -> EncodedRows:
        """Only these rows, in this order."""
        chosen = [self[int(row)] for row in rows]
        return pack_rows(chosen, passes=self.passes[rows], task_names=self.task_names)

    def drop_longer(self, max_tokens: int, grown: str, fault: str) -> EncodedRows:
        """Only the rows of at most so many tokens, after something has made rows longer.

        Args:
            max_tokens: the longest row to keep.
            grown: what has, as it stands behind the number of tokens in the log.
            fault: the same in an error, with the way out.

        Raises:
            DataError: no row is left that is short enough.
        """
        kept = np.flatnonzero(self.lengths <= max_tokens)
        if not len(kept):
            raise DataError(
                f"all {len(self):,} rows are longer than max_tokens {max_tokens} {fault}"
            )
        if len(kept) == len(self):
            return self
        _log.warning(
            "train: %d of %d rows are longer than max_tokens %d %s and are left out",
            len(self) - len(kept),
            len(self),
            max_tokens,
            grown,
        )
        return self.select(kept)


def pack_rows(
    rows: Sequence[EncodedRow],
    *,
    passes: Sequence[int] | NDArray[np.int32] | None = None,
    task_names: tuple[str, ...] = ("",),
) -> EncodedRows:
    """Rows in flat arrays.

    Args:
        rows: the rows.
        passes: each row's pass; None puts all into the first.
        task_names: what the rows' tasks are called.
    """
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.concatenate([row.input_ids for row in rows]) if rows else np.empty(0, np.int32)
    return EncodedRows(
        tokens.astype(np.int32),
        offsets,
        np.array([row.n_prompt for row in rows], dtype=np.int32),
        tasks=np.array([row.task for row in rows], dtype=np.int16),
        users=np.array([row.user for row in rows], dtype=np.int64),
        passes=np.array([0] * len(rows) if passes is None else passes, dtype=np.int32),
        task_names=task_names,
    )


def _join_rows(parts: Sequence[EncodedRows], task_names: tuple[str, ...]) -> EncodedRows:
    lengths = np.concatenate([part.lengths for part in parts])
    return EncodedRows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.prompt_lengths for part in parts]),
        tasks=np.concatenate([part.tasks for part in parts]),
        users=np.concatenate([part.users for part in parts]),
        passes=np.concatenate([part.passes for part in parts]),
        task_names=task_names,
    )


def encode_rows(
    tokenizer: Any,
    instructions: Any,
    max_tokens: int,
    split: str,
    chat: ChatFrame | None = None,
) -> EncodedRows:
    """The rows of a split as token ids, without those longer than `max_tokens`.

    Args:
        tokenizer: the extended tokenizer.
        instructions: a `datasets.Dataset` with prompt, prompt_spans, target and target_spans, and
            where it has them task, user_index and pass.
        max_tokens: the longest row to keep; cutting one could cut a semantic ID in half.
        split: its name, for messages.
        chat: the frame that prompts stand in; None is plain text.

    Raises:
        DataError: there are no rows, or none is short enough.
    """
    if len(instructions) == 0:
        raise DataError(
            f"the instructions have no {split} rows; loosen the filters of `genrec data`, or add "
            f"templates to the prompts recipe"
        )
    columns = [name for name in (*_TEXT_COLUMNS, *_FACT_COLUMNS) if name in instructions.features]
    parts: list[EncodedRows] = []
    tasks: dict[str, int] = {}
    longest = 0
    with show_progress(f"encoding {split} rows", len(instructions), unit="rows") as advance:
        for batch in instructions.select_columns(columns).iter(_READ_ROWS):
            encoded = _encode_batch(tokenizer, [batch[name] for name in _TEXT_COLUMNS], chat)
            longest = max(longest, *(len(ids) for ids, _ in encoded))
            parts.append(_keep_short(encoded, batch, tasks, max_tokens))
            advance(len(encoded))
    rows = _join_rows(parts, tuple(tasks))
    if not len(rows):
        raise DataError(
            f"all {len(instructions):,} {split} rows are longer than max_tokens {max_tokens} (the "
            f"longest has {longest:,}); raise max_tokens, or lower max_history in the prompts "
            f"recipe"
        )
    if len(rows) < len(instructions):
        _log.warning(
            "train: %d of %d %s rows are longer than max_tokens %d (longest %d) and are left out",
            len(instructions) - len(rows),
            len(instructions),
            split,
            max_tokens,
            longest,
        )
    return rows


def _keep_short(
    encoded: Sequence[tuple[list[int], int]],
    batch: Mapping[str, Sequence[Any]],
    tasks: dict[str, int],
    max_tokens: int,
) -> EncodedRows:
    """The rows that are short enough, with what else is known of them; `tasks` takes new names."""
    names = batch.get("task", [""] * len(encoded))
    users = batch.get("user_index", [NO_USER] * len(encoded))
    passes = batch.get("pass", [0] * len(encoded))
    kept = [row for row, (ids, _) in enumerate(encoded) if len(ids) <= max_tokens]
    rows = [
        EncodedRow(
            np.array(encoded[row][0], dtype=np.int32),
            encoded[row][1],
            tasks.setdefault(names[row], len(tasks)),
            users[row],
        )
        for row in kept
    ]
    return pack_rows(rows, passes=[passes[row] for row in kept])


def _encode_batch(
    tokenizer: Any, columns: Sequence[Sequence[Any]], chat: ChatFrame | None
) -> list[tuple[list[int], int]]:
    """Rows as `encode_example` makes them; a test holds the two ways equal."""
    prompts, prompt_spans, targets, target_spans = columns
    plain = [
        row for row in range(len(prompts)) if not (len(prompt_spans[row]) or len(target_spans[row]))
    ]
    texts = [prompts[row] for row in plain], [targets[row] for row in plain]
    encoded = dict(zip(plain, encode_plain(tokenizer, *texts, chat) if plain else [], strict=True))
    for row in range(len(prompts)):
        if row not in encoded:
            encoded[row] = encode_example(
                tokenizer,
                _rendered(prompts[row], prompt_spans[row]),
                _rendered(targets[row], target_spans[row]),
                chat,
            )
    return [encoded[row] for row in range(len(prompts))]


def _rendered(text: str, spans: Sequence[Sequence[int]]) -> Rendered:
    return Rendered(text, tuple((int(start), int(stop)) for start, stop in spans))

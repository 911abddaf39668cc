"""Training rows as token ids, and the batches made of them.

Owns encoding instructions, keeping them compactly, grouping rows of like length and padding them.
Knows nothing of models or losses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from genrec.errors import DataError
from genrec.progress import show_progress
from genrec.prompts.encode import encode_example
from genrec.prompts.render import Rendered
from genrec.types import IndexArray

IGNORED_LABEL = -100
_BATCHES_A_POOL = 50
_READ_ROWS = 1024
_COLUMNS = ("prompt", "prompt_spans", "target", "target_spans")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row: prompt and target tokens together; the first `n_prompt` are not learnt."""

    input_ids: NDArray[np.int32]
    n_prompt: int


class EncodedRows(Dataset[EncodedRow]):
    """All rows of one split, in three flat arrays.

    Shapes:
        tokens: (all tokens,) int32; offsets: (rows + 1,) int64; prompt_lengths: (rows,) int32.
    """

    def __init__(
        self, tokens: NDArray[np.int32], offsets: IndexArray, prompt_lengths: NDArray[np.int32]
    ) -> None:
        """Join tokens, where each row begins, and how much of it is prompt."""
        self.tokens = tokens
        self.offsets = offsets
        self.prompt_lengths = prompt_lengths

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.prompt_lengths)

    def __getitem__(self, index: int) -> EncodedRow:
        """One row; a view, not a copy."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return EncodedRow(self.tokens[start:stop], int(self.prompt_lengths[index]))

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    def select(self, rows: IndexArray) -> EncodedRows:
        """Only these rows, in this order."""
        return pack_rows([self[int(row)] for row in rows])


def pack_rows(rows: Sequence[EncodedRow]) -> EncodedRows:
    """Rows in flat arrays."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.concatenate([row.input_ids for row in rows]) if rows else np.empty(0, np.int32)
    prompts = np.array([row.n_prompt for row in rows], dtype=np.int32)
    return EncodedRows(tokens.astype(np.int32), offsets, prompts)


def encode_rows(tokenizer: Any, instructions: Any, max_tokens: int, split: str) -> EncodedRows:
    """The rows of a split as token ids, without those longer than `max_tokens`.

    Args:
        tokenizer: the extended tokenizer.
        instructions: a `datasets.Dataset` with prompt, prompt_spans, target and target_spans.
        max_tokens: the longest row to keep; cutting one could cut a semantic ID in half.
        split: its name, for messages.

    Raises:
        DataError: there are no rows, or none is short enough.
    """
    if len(instructions) == 0:
        raise DataError(
            f"the instructions have no {split} rows; loosen the filters of `genrec data`, or add "
            f"templates to the prompts recipe"
        )
    rows: list[EncodedRow] = []
    longest = 0
    with show_progress(f"encoding {split} rows", len(instructions), unit="rows") as advance:
        for batch in instructions.select_columns(list(_COLUMNS)).iter(_READ_ROWS):
            encoded = _encode_batch(tokenizer, [batch[name] for name in _COLUMNS])
            longest = max(longest, *(len(row.input_ids) for row in encoded))
            rows += [row for row in encoded if len(row.input_ids) <= max_tokens]
            advance(len(encoded))
    if not rows:
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
    return pack_rows(rows)


def _encode_batch(tokenizer: Any, columns: Sequence[Sequence[Any]]) -> list[EncodedRow]:
    """Rows as `encode_example` makes them; those without text from data all at once.

    A row without spans needs no guard, and a batch call of a fast tokenizer costs a tenth of as
    many single ones. A test holds the two ways equal.
    """
    prompts, prompt_spans, targets, target_spans = columns
    plain = [
        row for row in range(len(prompts)) if not (len(prompt_spans[row]) or len(target_spans[row]))
    ]
    encoded = dict(
        zip(
            plain,
            _encode_plain(
                tokenizer, [prompts[row] for row in plain], [targets[row] for row in plain]
            ),
            strict=True,
        )
    )
    for row in range(len(prompts)):
        if row not in encoded:
            ids, n_prompt = encode_example(
                tokenizer,
                _rendered(prompts[row], prompt_spans[row]),
                _rendered(targets[row], target_spans[row]),
            )
            encoded[row] = EncodedRow(np.array(ids, dtype=np.int32), n_prompt)
    return [encoded[row] for row in range(len(prompts))]


def _encode_plain(
    tokenizer: Any, prompts: Sequence[str], targets: Sequence[str]
) -> Iterator[EncodedRow]:
    if not prompts:
        return
    ids = tokenizer(
        [*prompts, *targets],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for prompt, target in zip(ids[: len(prompts)], ids[len(prompts) :], strict=True):
        row = [*begin, *prompt, *target, tokenizer.eos_token_id]
        yield EncodedRow(np.array(row, dtype=np.int32), len(begin) + len(prompt))


def _rendered(text: str, spans: Sequence[Sequence[int]]) -> Rendered:
    return Rendered(text, tuple((int(start), int(stop)) for start, stop in spans))


class LengthGroups(Sampler[int]):
    """Row numbers in an order in which each run of `batch_size` rows has like length.

    Rows are shuffled, cut into pools of fifty batches, sorted by length inside a pool, and the
    batches are shuffled again. The order depends on seed and epoch alone, so a resumed run sees the
    batches that the killed one would have seen.
    """

    def __init__(self, lengths: IndexArray, batch_size: int, seed: int, *, group: bool) -> None:
        """Sample rows of these lengths; with `group` off, a plain seeded shuffle."""
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._group = group
        self._epoch = 0

    def __len__(self) -> int:
        """How many rows an epoch has."""
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """The row numbers of one epoch."""
        random = np.random.default_rng((self._seed, self._epoch))
        order = random.permutation(len(self._lengths))
        if self._group:
            pool = np.arange(len(order)) // (self._batch_size * _BATCHES_A_POOL)
            order = order[np.lexsort((self._lengths[order], pool))]
            order = self._shuffle_batches(order, random)
        yield from order.tolist()

    def _shuffle_batches(self, order: IndexArray, random: np.random.Generator) -> IndexArray:
        n_whole = len(order) // self._batch_size * self._batch_size
        whole = order[:n_whole].reshape(-1, self._batch_size)
        # The incomplete batch stays last: a batch sampler cuts the order every batch_size rows.
        return np.concatenate([random.permutation(whole).ravel(), order[n_whole:]])


def collate_rows(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, Any]:
    """A batch padded on the left, whose targets all end at the right edge.

    So the last C + 1 positions of every row hold its whole target, and the model's own
    `logits_to_keep` lets the LM head see only those: V x C products a row instead of V x T.

    Args:
        rows: the rows of the batch.
        pad_token_id: fills the left; masked everywhere.

    Shapes:
        input_ids, attention_mask, position_ids: (U, T) int64; labels: (U, C + 1) int64, aligned
        with the last C + 1 positions, and the first column always ignored, as in Hugging Face's
        convention that position i predicts label i + 1.
    """
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    targets = lengths - np.array([row.n_prompt for row in rows], dtype=np.int64)
    width, keep = int(lengths.max()), int(targets.max()) + 1
    width = max(width, keep)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[width - len(row.input_ids) :] = row.input_ids
    column = np.arange(width)
    mask = (column >= width - lengths[:, None]).astype(np.int64)
    labels = np.where(column >= width - targets[:, None], ids, IGNORED_LABEL)[:, -keep:]
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.from_numpy(np.maximum(mask.cumsum(axis=1) - 1, 0)),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
        "logits_to_keep": keep,
    }

"""Batches of training rows: their order, and how rows become tensors.

Owns grouping rows of like length, laying a batch's rows end to end, and padding them. Knows nothing
of models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from genrec.train.rows import NO_USER, EncodedRow, EncodedRows
from genrec.types import IndexArray

IGNORED_LABEL = -100
ABOUT = "about"
"""The batch's entry that is for the Trainer and not for the model."""
RowGroups = tuple[tuple[int, int, torch.Tensor | None], ...]
_BATCHES_A_POOL = 50
_STRETCH = 1.5


class LengthGroups(Sampler[int]):
    """Row numbers in an order in which each run of `batch_size` rows has like length.

    Rows are shuffled, cut into pools of fifty batches, sorted by length inside a pool, and the
    batches are shuffled again. The order depends on seed and epoch alone, so a resumed run sees the
    batches that the killed one would have seen.

    Where rows were drawn anew for each of P passes, epoch e goes over pass e modulo P. The Trainer
    takes all P for one epoch of its own: its epochs then have one length, whatever the passes have,
    and that is what its counting on from a checkpoint rests on.
    """

    def __init__(self, rows: EncodedRows, batch_size: int, seed: int, *, group: bool) -> None:
        """Sample these rows; with `group` off, a plain seeded shuffle."""
        self._lengths = rows.lengths
        self._passes = [np.flatnonzero(rows.passes == number) for number in list_passes(rows)]
        self._batch_size = batch_size
        self._seed = seed
        self._group = group
        self._epoch = 0

    def __len__(self) -> int:
        """How many rows all passes have together."""
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose which turn over all passes comes next; the Trainer calls it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """The row numbers of every pass in turn."""
        n_drawn = 0
        for number, rows in enumerate(self._passes):
            epoch = self._epoch * len(self._passes) + number
            yield from self._order_rows(rows, epoch, -n_drawn % self._batch_size).tolist()
            n_drawn += len(rows)

    def _order_rows(self, rows: IndexArray, epoch: int, n_missing: int) -> IndexArray:
        """One epoch's order; the first `n_missing` rows fill the batch that the last pass began."""
        random = np.random.default_rng((self._seed, epoch))
        order = rows[random.permutation(len(rows))]
        if not self._group:
            return order
        first, rest = order[:n_missing], order[n_missing:]
        pool = np.arange(len(rest)) // (self._batch_size * _BATCHES_A_POOL)
        rest = rest[np.lexsort((self._lengths[rest], pool))]
        return np.concatenate([first, self._shuffle_batches(rest, random)])

    def _shuffle_batches(self, order: IndexArray, random: np.random.Generator) -> IndexArray:
        n_whole = len(order) // self._batch_size * self._batch_size
        whole = order[:n_whole].reshape(-1, self._batch_size)
        # The incomplete batch stays last: a batch sampler cuts the order every batch_size rows.
        return np.concatenate([random.permutation(whole).ravel(), order[n_whole:]])


def list_passes(rows: EncodedRows) -> list[int]:
    """The passes that rows are drawn for, ascending."""
    return [int(number) for number in np.unique(rows.passes)]


def count_cycles(rows: EncodedRows, epochs: float) -> float:
    """How often all rows of all passes are gone over in so many epochs, each of one pass."""
    sizes = np.array([np.count_nonzero(rows.passes == number) for number in list_passes(rows)])
    cycles, left = divmod(epochs, len(sizes))
    part = sizes[: int(left)].sum() + left % 1 * sizes[int(left)]
    return cycles + float(part / sizes.sum())


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes the batch of a list of rows.

    Attributes:
        pad_token_id: fills rows to one length, where they are padded.
        packed: lay the rows end to end (`lay_rows`) instead of padding them (`collate_rows`).
        token_users: also say whose each token is, for soft user tokens.
    """

    pad_token_id: int
    packed: bool = False
    token_users: bool = False

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Any]:
        """The batch of these rows.

        Shapes:
            about.token_users: as input_ids, int64, the user_index of the row that each token is
            of, and NO_USER on padding and where the row has no user.
        """
        batch = lay_rows(rows) if self.packed else collate_rows(rows, self.pad_token_id)
        if self.token_users:
            batch[ABOUT]["token_users"] = _spread_users(rows, packed=self.packed)
        return batch


def collate_rows(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, Any]:
    """A batch padded on the left, whose targets all end at the right edge.

    So the last C + 1 positions of every row hold its whole target, and the model's own
    `logits_to_keep` lets the LM head see only those that come before a target: V x C products a row
    instead of V x T. A row's first token is never a target, for nothing comes before it.

    Args:
        rows: the rows of the batch.
        pad_token_id: fills the left; masked everywhere.

    Shapes:
        input_ids, attention_mask, position_ids: (U, T) int64; logits_to_keep: (C,) int64, the
        positions that predict; labels: (U, C + 1) int64, so that kept position i predicts label
        i + 1, and the first column always ignored, as Hugging Face's Trainer expects when it
        counts; about.tasks, about.tokens: (U,) int64, each row's task and length;
        about.target_rows: (U, C) int64, the row of each target.
    """
    lengths, firsts = _measure_rows(rows)
    targets = lengths - firsts
    width, longest = int(lengths.max()), int(targets.max())
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[width - len(row.input_ids) :] = row.input_ids
    column = np.arange(width)
    mask = (column >= width - lengths[:, None]).astype(np.int64)
    labels = np.where(column >= width - targets[:, None], ids, IGNORED_LABEL)
    kept = np.arange(width - longest - 1, width - 1)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.from_numpy(np.maximum(mask.cumsum(axis=1) - 1, 0)),
        "labels": torch.from_numpy(np.ascontiguousarray(labels[:, width - longest - 1 :])),
        "logits_to_keep": torch.from_numpy(kept),
        ABOUT: _describe_rows(rows, np.repeat(np.arange(len(rows)), longest).reshape(-1, longest)),
    }


def lay_rows(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """A batch without padding: its rows end to end in one line, shortest first.

    Each row's positions begin at 0. `row_groups` tells `packing.attend_rows` where rows begin, so
    that each attends to itself only. The mask only says that nothing is hidden by padding: having
    four dimensions, it keeps transformers from making one of T x T from the positions, and its sum
    is the number of tokens, which the Trainer counts.

    Shapes:
        input_ids, position_ids: (1, T) int64; attention_mask: (1, 1, 1, T) bool; logits_to_keep:
        (C,) int64; labels: (1, C + 1) int64; about: as in `collate_rows`, target_rows (1, C).
    """
    lengths, firsts = _measure_rows(rows)
    order = np.argsort(lengths, kind="stable")
    lengths, firsts = lengths[order], firsts[order]
    ids = np.concatenate([rows[row].input_ids for row in order.tolist()]).astype(np.int64)
    positions = _count_up(lengths)
    is_target = positions >= np.repeat(firsts, lengths)
    kept = np.flatnonzero(is_target) - 1
    labels = np.concatenate([[IGNORED_LABEL], ids[is_target]])
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "attention_mask": torch.ones(1, 1, 1, len(ids), dtype=torch.bool),
        "position_ids": torch.from_numpy(positions)[None],
        "labels": torch.from_numpy(labels)[None],
        "logits_to_keep": torch.from_numpy(kept),
        "row_groups": group_rows(lengths.tolist()),
        ABOUT: _describe_rows(rows, np.repeat(order, lengths)[is_target][None]),
    }


def group_rows(lengths: Sequence[int]) -> RowGroups:
    """Rows that lie end to end, shortest first, in runs of like length.

    No row of a run is stretched to more than one and a half times its length.

    Shapes:
        returns (rows of the run, longest of them, places), a triple a run; places: (tokens of the
        run,) int64, where each token stands once the rows are padded on the right and laid end to
        end; None where no row of the run needs padding.
    """
    groups = []
    start = 0
    while start < len(lengths):
        stop = start
        while stop < len(lengths) and lengths[stop] <= _STRETCH * lengths[start]:
            stop += 1
        run = np.array(lengths[start:stop], dtype=np.int64)
        width, places = int(run[-1]), None
        if run[0] < width:
            places = torch.from_numpy(np.repeat(np.arange(len(run)) * width, run) + _count_up(run))
        groups.append((len(run), width, places))
        start = stop
    return tuple(groups)


def _measure_rows(rows: Sequence[EncodedRow]) -> tuple[IndexArray, IndexArray]:
    """Each row's length, and the place of its first target."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    return lengths, np.array([max(row.n_prompt, 1) for row in rows], dtype=np.int64)


def _count_up(lengths: IndexArray) -> IndexArray:
    """0, 1, ... for each row, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)


def _describe_rows(rows: Sequence[EncodedRow], target_rows: IndexArray) -> dict[str, Any]:
    return {
        "tasks": torch.tensor([row.task for row in rows]),
        "tokens": torch.tensor([len(row.input_ids) for row in rows]),
        "target_rows": torch.from_numpy(np.ascontiguousarray(target_rows)),
    }


def _spread_users(rows: Sequence[EncodedRow], *, packed: bool) -> torch.Tensor:
    lengths, _ = _measure_rows(rows)
    users = np.array([row.user for row in rows], dtype=np.int64)
    if packed:
        order = np.argsort(lengths, kind="stable")
        return torch.from_numpy(np.repeat(users[order], lengths[order]))[None]
    inside = np.arange(lengths.max()) >= lengths.max() - lengths[:, None]
    return torch.from_numpy(np.where(inside, users[:, None], NO_USER))

"""Which of many scored candidates stay in the search.

Owns selection: the best few of each user's candidates, ties broken the same way every time. Knows
no model and no trie; candidates are rows of flat arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from genrec.types import FloatArray, IndexArray


def count_within(user_row: IndexArray) -> IndexArray:
    """How many rows of the same user come before each row.

    Args:
        user_row: (C,) the user of each row; never falls.
    """
    place: IndexArray = np.arange(len(user_row)) - np.searchsorted(user_row, user_row)
    return place


@dataclass(frozen=True, slots=True)
class Kept:
    """The best candidates of each user, best first.

    Shapes:
        index: (U, W) int64 into the flat candidates; -1 where a user has fewer than W.
        scores: (U, W) float32; -inf where index is -1.
        best_left_out: (U,) float32, the score of the best candidate that was not kept, or -inf.
    """

    index: IndexArray
    scores: FloatArray
    best_left_out: FloatArray


def keep_best(
    scores: Tensor, user_row: IndexArray, n_users: int, width: int, tie_key: IndexArray
) -> Kept:
    """Keep the `width` best candidates of each user.

    Args:
        scores: (C,) float32, finite.
        user_row: (C,) the user of each candidate; never falls, and every user has one.
        n_users: U.
        width: how many to keep; fewer columns come back where no user has that many.
        tie_key: (C,) among equal scores the lower key wins; distinct within a user.
    """
    counts = np.bincount(user_row, minlength=n_users)
    starts = np.cumsum(counts) - counts
    table = _lay_out(scores, user_row, starts, int(counts.max()))
    n_columns = table.shape[1]
    width = min(width, n_columns)
    top = torch.topk(table, min(width + 1, n_columns), dim=1).values
    rows, flat, values = _find_at_least(table, top[:, width - 1 : width], counts, starts)
    order = np.lexsort((tie_key[flat], -values, rows))
    place = count_within(rows)
    order, place, rows = order[place < width], place[place < width], rows[place < width]
    index = np.full((n_users, width), -1, dtype=np.int64)
    kept_scores = np.full((n_users, width), -np.inf, dtype=np.float32)
    index[rows, place], kept_scores[rows, place] = flat[order], values[order]
    left_out = np.full(n_users, -np.inf, dtype=np.float32)
    if top.shape[1] > width:
        left_out = top[:, width].cpu().numpy()
    return Kept(index, kept_scores, left_out)


def _lay_out(scores: Tensor, user_row: IndexArray, starts: IndexArray, n_columns: int) -> Tensor:
    """The flat scores as a (U, n_columns) table, -inf where a user has no more candidates."""
    if len(scores) == len(starts) * n_columns:
        return scores.view(len(starts), n_columns)
    table = scores.new_full((len(starts), n_columns), -torch.inf)
    place = user_row * n_columns + np.arange(len(user_row)) - starts[user_row]
    table.view(-1)[torch.from_numpy(place).to(scores.device)] = scores
    return table


def _find_at_least(
    table: Tensor, threshold: Tensor, counts: IndexArray, starts: IndexArray
) -> tuple[IndexArray, IndexArray, FloatArray]:
    """User row, flat index and score of all candidates at or above their user's threshold."""
    at = torch.nonzero(table >= threshold)
    values = table[at[:, 0], at[:, 1]].cpu().numpy()
    rows, columns = at.cpu().numpy().T
    real = columns < counts[rows]
    return rows[real], starts[rows[real]] + columns[real], values[real]


class BestItems:
    """The best k items of each user so far.

    Attributes:
        item_index: (U, k) int64, best first; -1 where a user has fewer.
        scores: (U, k) float32; -inf where item_index is -1.
    """

    def __init__(self, item_index: IndexArray, scores: FloatArray) -> None:
        """Begin with these, best first."""
        self.item_index = item_index
        self.scores = scores

    @classmethod
    def begin_empty(cls, n_users: int, k: int) -> Self:
        """No items yet."""
        return cls(
            np.full((n_users, k), -1, dtype=np.int64),
            np.full((n_users, k), -np.inf, dtype=np.float32),
        )

    @property
    def worst(self) -> FloatArray:
        """(U,) what an item must reach to be among them; -inf while there are fewer than k."""
        return self.scores[:, -1]

    def add(self, user: IndexArray, item: IndexArray, score: FloatArray) -> None:
        """Let items that are not among them compete; of equal scores the lower item_index wins.

        Shapes:
            user, item, score: (C,), in any order.
        """
        reaches = score >= self.worst[user]
        if not reaches.any():
            return
        n_users, k = self.scores.shape
        held = self.item_index.ravel() >= 0
        users = np.append(np.repeat(np.arange(n_users), k)[held], user[reaches])
        items = np.append(self.item_index.ravel()[held], item[reaches])
        scores = np.append(self.scores.ravel()[held], score[reaches])
        order = np.lexsort((items, -scores, users))
        users = users[order]
        place = count_within(users)
        order, users, place = order[place < k], users[place < k], place[place < k]
        self.item_index[users, place] = items[order]
        self.scores[users, place] = scores[order]

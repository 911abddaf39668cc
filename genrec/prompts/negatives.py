"""Items that a user did not choose, drawn for rows that offer a choice.

Owns the draw: never an item of the user's training choices, never one twice in a row, and held-out
choices never looked at, so that one of them may be among the wrong ones, as in every evaluation
that samples. Knows no task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genrec.prompts.chance import draw_numbers
from genrec.prompts.corpus import Corpus
from genrec.types import IndexArray

_ROUNDS = 3
_NEVER = 1e-9  # the weight of an item that nobody chose: after all others


def draw_negatives(corpus: Corpus, purpose: str, subjects: IndexArray, n: int) -> IndexArray:
    """(R, n) item_index, in order of the draw; -1 at the end where the user has chosen the rest.

    Items are drawn as the recipe's `negatives` says; with "popularity", items that nobody chose
    come only where there are no others left.

    Args:
        corpus: its walks, recipe and seed.
        purpose: another purpose draws other items.
        subjects: (R,) places in the walks.
        n: how many items a row.
    """
    found = np.full((len(subjects), n), -1, dtype=np.int64)
    short = np.arange(len(subjects), dtype=np.int64)
    for turn in range(_ROUNDS):
        if not len(short):
            break
        drawn = _draw_items(corpus, f"{purpose}.{turn}", subjects[short], n + n // 4 + 4)
        offered = np.concatenate([found[short], drawn], axis=1)
        found[short] = _keep_first(corpus, subjects[short], offered, n)
        short = short[found[short, -1] < 0]
    spare = count_spare(corpus, subjects)
    for row in short[(found[short] >= 0).sum(axis=1) < spare[short]].tolist():
        found[row] = _fill_row(corpus, purpose, subjects[row : row + 1], found[row])
    return found


def count_spare(corpus: Corpus, subjects: IndexArray) -> IndexArray:
    """(R,) how many items the user of each place has not chosen."""
    n_users = len(corpus.walks.user_index)
    owners = _find_owned(corpus) // len(corpus.sids)
    n_chosen = np.bincount(owners, minlength=n_users)
    return len(corpus.sids) - n_chosen[corpus.walks.owner[subjects]]


def count_choices(corpus: Corpus) -> IndexArray:
    """(N,) how often everybody chose each item in training."""
    return corpus.remember(
        "negatives.counts",
        lambda: np.bincount(corpus.walks.item_index, minlength=len(corpus.sids)),
    )


def _draw_items(corpus: Corpus, purpose: str, subjects: IndexArray, n: int) -> IndexArray:
    numbers = draw_numbers(corpus.seed, purpose, subjects, n)
    if corpus.recipe.negatives == "uniform":
        return (numbers % np.uint64(len(corpus.sids))).astype(np.int64)
    # A training choice drawn alike is an item drawn by popularity.
    chosen = corpus.walks.item_index
    return chosen[(numbers % np.uint64(len(chosen))).astype(np.int64)]


def _keep_first(corpus: Corpus, subjects: IndexArray, items: IndexArray, n: int) -> IndexArray:
    """(R, n) the first n different ones of (R, D) items that the user has not chosen, then -1."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, dtype=np.bool_)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    usable = (items >= 0) & ~again & ~_is_owned(corpus, subjects, items)
    rank = np.cumsum(usable, axis=1) - 1
    rows, columns = np.nonzero(usable & (rank < n))
    kept = np.full((len(items), n), -1, dtype=np.int64)
    kept[rows, rank[rows, columns]] = items[rows, columns]
    return kept


def _is_owned(corpus: Corpus, subjects: IndexArray, items: IndexArray) -> NDArray[np.bool_]:
    owned = _find_owned(corpus)
    keys = corpus.walks.owner[subjects][:, None] * len(corpus.sids) + items
    places = np.minimum(np.searchsorted(owned, keys), len(owned) - 1)
    return np.asarray(owned[places] == keys)


def _find_owned(corpus: Corpus) -> IndexArray:
    """Every user and item of a training choice as one number, sorted."""
    walks = corpus.walks
    return corpus.remember(
        "negatives.owned", lambda: np.unique(walks.owner * len(corpus.sids) + walks.item_index)
    )


def _fill_row(corpus: Corpus, purpose: str, subject: IndexArray, found: IndexArray) -> IndexArray:
    """A row that the rounds left open, filled by one weighted draw from all that is left.

    Source:
        Efraimidis and Spirakis, IPL 97(5), 2006: a weighted sample without replacement.
    """
    items = np.arange(len(corpus.sids), dtype=np.int64)
    left = ~_is_owned(corpus, subject, items[None])[0]
    left[found[found >= 0]] = False
    rest = items[left]
    numbers = draw_numbers(corpus.seed, f"{purpose}.rest", subject, len(rest))[0]
    waits = -np.log1p(-((numbers >> np.uint64(11)) * 2.0**-53))
    if corpus.recipe.negatives == "popularity":
        waits /= np.maximum(count_choices(corpus)[rest], _NEVER)
    filled = np.concatenate([found[found >= 0], rest[np.argsort(waits, kind="stable")]])
    row = np.full(len(found), -1, dtype=np.int64)
    row[: len(filled)] = filled[: len(row)]
    return row

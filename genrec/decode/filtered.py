"""Answers for users whose filters may leave fewer items than they ask for.

Owns how many answers each user can still be given. Knows engines by their Protocol only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genrec.decode.engine import PLAIN, Engine, ItemFilter, Search
from genrec.decode.request import count_legal, narrow_filters
from genrec.decode.search import join_batches
from genrec.types import FloatArray, RankedItems


def rank_filtered(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    filters: Sequence[ItemFilter],
    k: int,
    search: Search = PLAIN,
    *,
    user_vectors: FloatArray | None = None,
) -> RankedItems:
    """The k best legal items after each prompt; -1 and -inf where there are fewer.

    Args:
        engine: answers the prompts.
        prompts: U token id sequences.
        filters: for each prompt what it may be answered with.
        k: answers a prompt.
        search: how to search.
        user_vectors: for each prompt the embedding of its user, for a model in memory whose
            prompts have marks for them (`TorchEngine.rank_prompts`).

    Shapes:
        user_vectors: (U, dimensions); result: (U, k).
    """
    # Of a catalogue of titles, items without one are no answers.
    answerable = getattr(engine, "answerable", None)
    legal = filters if answerable is None else narrow_filters(filters, answerable)
    wanted = np.minimum(k, count_legal(legal, engine.n_items))
    parts: list[tuple[Sequence[int], RankedItems]] = []
    # Engines that run elsewhere take no embeddings; without any, nothing more is asked of them.
    rank: Any = engine.rank_prompts
    # Users with fewer legal items than k are asked for what they have; nearly all share one k.
    for size in np.unique(wanted[wanted > 0]).tolist():
        users = np.flatnonzero(wanted == size).tolist()
        shown = {} if user_vectors is None else {"user_vectors": user_vectors[users]}
        part: RankedItems = rank(
            [prompts[user] for user in users],
            size,
            search if search.width is None else replace(search, width=max(search.width, size)),
            filters=[filters[user] for user in users],
            **shown,
        )
        parts.append((users, part))
    return join_batches(parts, len(prompts), k)

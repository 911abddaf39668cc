"""Answers that a user has not chosen before.

Owns how many answers each user can still be given. Knows engines by their Protocol only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from genrec.decode.engine import Engine
from genrec.types import FloatArray, IndexArray, RankedItems


def rank_unseen(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seen: Sequence[IndexArray],
    k: int,
    *,
    user_vectors: FloatArray | None = None,
) -> RankedItems:
    """The k best items after each prompt but for those seen; -1 and -inf where there are fewer.

    Args:
        engine: answers the prompts.
        prompts: U token id sequences.
        seen: for each prompt the item_index that it is not answered with, each once.
        k: answers a prompt.
        user_vectors: for each prompt the embedding of its user, for a model in memory whose
            prompts have marks for them (`TorchEngine.rank_prompts`).

    Shapes:
        user_vectors: (U, dimensions); result: (U, k).
    """
    item_index = np.full((len(prompts), k), -1, dtype=np.int64)
    scores = np.full((len(prompts), k), -np.inf, dtype=np.float32)
    certified = np.ones(len(prompts), dtype=np.bool_)
    # Engines that run elsewhere take no embeddings; without any, nothing more is asked of them.
    rank: Any = engine.rank_prompts
    wanted = np.array([min(k, engine.n_items - len(items)) for items in seen], dtype=np.int64)
    # Users with fewer unseen items than k are asked for what they have; nearly all share one k.
    for size in np.unique(wanted[wanted > 0]):
        users = np.flatnonzero(wanted == size)
        shown = {} if user_vectors is None else {"user_vectors": user_vectors[users]}
        part: RankedItems = rank(
            [prompts[user] for user in users.tolist()],
            int(size),
            excluded=[seen[user] for user in users.tolist()],
            **shown,
        )
        item_index[users, :size] = part.item_index
        scores[users, :size] = part.scores
        certified[users] = part.certified
    return RankedItems(item_index, scores, certified)

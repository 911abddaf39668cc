"""Whether codes carry the demand evenly, or a few of them most of it.

Owns the balance of interactions over first codes and the sizes of prefix groups. Knows no vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.tokenizers.measures.code_use import CodeTable, group_prefixes, measure_gini
from genrec.tokenizers.measures.neighbours import correlate_ranks
from genrec.types import IndexArray


def measure_popularity(codes: CodeTable, interactions: IndexArray) -> dict[str, Any]:
    """How training interactions spread over the first codes in use; plain JSON values.

    `gini` is 0 where each first code is asked for as often as any other; `items_gini` is that of
    the items alone. `size_correlation` ranks first codes by how many items they have and by how
    often one of these is chosen: below 0, popular items sit in small groups.

    Args:
        codes: (N, L).
        interactions: (N,) how often each item was chosen in training.
    """
    group, sizes = group_prefixes(codes, 1)
    asked = np.bincount(group, weights=interactions, minlength=len(sizes))
    return {
        "interactions": int(interactions.sum()),
        "gini": measure_gini(asked),
        "items_gini": measure_gini(sizes),
        "largest_share": float(asked.max() / max(asked.sum(), 1)),
        "size_correlation": correlate_ranks(sizes, asked / sizes),
    }


def measure_groups(codes: CodeTable) -> list[dict[str, Any]]:
    """How many items share each prefix, length by length; plain JSON values.

    `item_mean` is the mean over items, not groups: how large the group is that an item finds
    itself in.
    """
    rows = []
    for depth in range(1, codes.shape[1] + 1):
        sizes = group_prefixes(codes, depth)[1]
        rows.append(
            {
                "depth": depth,
                "groups": len(sizes),
                "mean": float(sizes.mean()),
                "median": float(np.median(sizes)),
                "p90": float(np.quantile(sizes, 0.9)),
                "largest": int(sizes.max()),
                "alone_share": float((sizes == 1).sum() / len(codes)),
                "item_mean": float((sizes.astype(np.float64) ** 2).sum() / len(codes)),
            }
        )
    return rows

"""How evenly codes are used, from counts alone.

Owns the measures of one distribution of items over codes. Knows no vocabulary and no quantizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.tokenizers.uniqueness.cells import pack_rows
from genrec.types import IndexArray

CodeTable = NDArray[np.int32]


def measure_use(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Every measure of how items spread over codes; every value a plain JSON value.

    Args:
        counts: how many items each code has, codes that nobody has included.
    """
    used = int((counts > 0).sum())
    entropy = measure_entropy(counts)
    return {
        "codes": len(counts),
        "used": used,
        "dead": len(counts) - used,
        "utilisation": used / len(counts),
        "perplexity": 2.0**entropy,
        "entropy_bits": entropy,
        "gini": measure_gini(counts),
    }


def measure_entropy(counts: NDArray[np.int64]) -> float:
    """The entropy of the codes in bits: what naming an item's code tells; 0 without items.

    Source: Shannon 1948, section 6, with the shares as probabilities (no small-sample correction).
    """
    held = counts[counts > 0]
    if not len(held):
        return 0.0
    share = held / held.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def measure_perplexity(counts: NDArray[np.int64]) -> float:
    """How many codes, used evenly, would tell as much: 2 to the power of the entropy in bits.

    Source: Jelinek et al. 1977; LETTER (Wang et al. 2024) and RQ-VAE work report it a level.
    """
    return float(2.0 ** measure_entropy(counts))


def measure_gini(counts: NDArray[Any]) -> float:
    """The Gini coefficient: 0 where all have the same, near 1 where one has everything.

    Source: Gini 1912, by the sorted form: sum((2i - n - 1) x_i) / (n sum(x)), i from 1.
    """
    total, n = float(counts.sum()), len(counts)
    if total <= 0:
        return 0.0
    place = 2.0 * np.arange(1, n + 1) - n - 1
    return float((place * np.sort(counts)).sum() / (n * total))


def count_groups(codes: CodeTable) -> IndexArray:
    """How many items share each code sequence that is in use, in the order of the codes."""
    return np.unique(number_rows(codes), return_counts=True)[1]


def number_rows(codes: CodeTable) -> NDArray[Any]:
    """One value a row, equal where the rows are equal.

    Packed into integers, which sort many times faster, and in less memory, than rows do.
    """
    return pack_rows(codes, [int(column.max()) + 1 for column in codes.T])


def group_prefixes(codes: CodeTable, depth: int) -> tuple[IndexArray, IndexArray]:
    """Each item's group among the prefixes of that length, and the groups' sizes.

    Shapes:
        codes: (N, L) int32.
        returns: (N,) int64 numbered from 0 in the order of the codes, and (G,) int64.
    """
    _, group, sizes = np.unique(
        number_rows(codes[:, :depth]), return_inverse=True, return_counts=True
    )
    return group.astype(np.int64), sizes.astype(np.int64)


def measure_collisions(codes: CodeTable) -> float:
    """The share of items that would be lost if a code sequence named one item only.

    Source: 1 - unique/total, as LC-Rec (Zheng et al. 2024) counts it.
    """
    return 1.0 - len(count_groups(codes)) / len(codes)

"""Unique codes by one more level.

Owns TIGER's extra token: a number that tells apart the items of a cell. Knows codes only.

Source: TIGER (Rajput et al. 2023, section 3.1) appends a token to each semantic ID, 0 where an ID
has one item. Deviation: none; the size of that level, which the paper leaves open, is the largest
cell's plus room for items that come later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.errors import CapacityError
from genrec.tokenizers.uniqueness.assign import Assignment, CodeArray, check_codes
from genrec.tokenizers.uniqueness.cells import pack_rows, rank_within
from genrec.types import IndexArray


def append_suffix(
    codes: CodeArray,
    codebook_sizes: Sequence[int],
    taken: CodeArray | None = None,
    *,
    room: int = 0,
    suffix_size: int | None = None,
) -> Assignment:
    """The codes with one more level, on which the items of a cell count from 0 in their order.

    Args:
        codes: the quantizer's own codes.
        codebook_sizes: of its levels.
        taken: code sequences, suffix included, that are not to be given out; others come after.
        room: suffix codes beyond the largest cell's.
        suffix_size: how many there are, where that is decided already; `room` then has no meaning.

    Shapes:
        codes: (N, L) int32.
        taken: (M, L + 1) int32.

    Raises:
        CapacityError: more items in a cell than `suffix_size`.
        DataError: codes that do not fit the codebooks.
    """
    if taken is None or not len(taken):
        taken = np.empty((0, len(codebook_sizes) + 1), dtype=np.int32)
    check_codes(codes, codebook_sizes, taken[:, :-1])
    suffix = _count_around(codes, codebook_sizes, taken)
    needed = int(suffix.max()) + 1
    if suffix_size is not None and needed > suffix_size:
        row = int(suffix.argmax())
        raise CapacityError(
            f"an item with codes {tuple(codes[row].tolist())} would be number {needed} of its "
            f"kind, but this tokenizer has {suffix_size} suffix codes; fit it again with a larger "
            f"uniqueness.suffix_room, which keeps some free for items that come later"
        )
    size = needed + room if suffix_size is None else suffix_size
    return Assignment(
        codes=np.column_stack([codes, suffix.astype(np.int32)]),
        moved=np.zeros(len(codes), dtype=np.bool_),
        added_distance=np.zeros(len(codes)),
        codebook_sizes=(*codebook_sizes, size),
    )


def _count_around(codes: CodeArray, codebook_sizes: Sequence[int], taken: CodeArray) -> IndexArray:
    """Each item's suffix: the lowest of its cell that no earlier item and no taken sequence has."""
    keys = pack_rows(np.concatenate([codes, taken[:, :-1]]), codebook_sizes)
    _, cell = np.unique(keys, return_inverse=True)
    own, others = cell[: len(codes)], cell[len(codes) :]
    wanted = np.bincount(own, minlength=int(cell.max()) + 1)
    in_use = np.bincount(others, minlength=len(wanted))
    # As many candidates as there are items and taken suffixes: enough of them must be free.
    n_candidates = np.where(wanted > 0, wanted + in_use, 0)
    candidate_cell = np.repeat(np.arange(len(wanted)), n_candidates)
    candidate = rank_within(candidate_cell)
    span = int(max(n_candidates.max(), taken[:, -1].max(initial=0) + 1))
    is_free = ~np.isin(candidate_cell * span + candidate, others * span + taken[:, -1])
    candidate_cell, candidate = candidate_cell[is_free], candidate[is_free]
    candidate = candidate[rank_within(candidate_cell) < wanted[candidate_cell]]
    suffix = np.empty(len(codes), dtype=np.int64)
    suffix[np.argsort(own, kind="stable")] = candidate
    return suffix

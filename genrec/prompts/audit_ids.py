"""Leaks through semantic ids: ids that stand next to each other because of held-out choices.

Owns the look at the ids themselves, whoever made them: a scheme that numbers items along whole
sequences gives the held-out item the number after the last training item. Knows no tokenizer.

Source: P5's sequential indexing (Geng et al. 2022) numbers items along users' full sequences;
Rajput et al. 2023 (TIGER) left P5's ids out of the comparison for that and made them anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from genrec.data.dataset import Dataset
from genrec.prompts.audit_time import UNLIKELY, Findings
from genrec.types import IndexArray

OFFSETS = tuple(offset for offset in range(-5, 6) if offset)
STANDS_OUT = 10
"""Neighbours as many times as at other small offsets. Ids that say what an item is like have as
many at -1 as at +1, which keeps them below 9."""

Flags = NDArray[np.bool_]
_SHUFFLES = 10
_CODE = re.compile(r"\d+")


def audit_ids(dataset: Dataset, sids: Sequence[str]) -> Findings:
    """Whether held-out items stand next to the last training item in the order of ids.

    Looks at each user's last training item and first held-out item where training never has the two
    in a row, and compares how often the second id follows the first with other small distances and
    with shuffled pairs.

    Args:
        dataset: the data.
        sids: each item's semantic ids, in item_index order.
    """
    last, first = _find_transitions(dataset)
    rank = _rank_sids(sids)
    steps = rank[first] - rank[last]
    counts = {offset: int((steps == offset).sum()) for offset in OFFSETS}
    random = np.random.default_rng(0)
    shuffled = [
        int((rank[random.permutation(first)] - rank[last] == 1).sum()) for _ in range(_SHUFFLES)
    ]
    found = Findings([], [], {
        "held_out_transitions": len(steps),
        "id_neighbours": {str(offset): n for offset, n in counts.items()},
        "id_neighbours_shuffled": float(np.mean(shuffled)),
    })  # fmt: skip

    def name(item: int) -> str:
        return f"{dataset.item_ids[item]!r} {sids[item]}"

    for offset in (1, -1):
        others = [n for other, n in counts.items() if other != offset]
        usual = max(float(np.mean(others)), float(np.mean(shuffled)))
        expected = max(usual / max(len(steps), 1), 1 / len(sids))
        many = counts[offset] >= STANDS_OUT * usual and counts[offset] > 0
        if many and binomtest(counts[offset], len(steps), min(expected, 1.0)).pvalue < UNLIKELY:
            place = int(np.flatnonzero(steps == offset)[0])
            found.faults.append(
                f"the semantic ids know the future: for {counts[offset]:,} of {len(steps):,} users "
                f"the held-out item's id is the very next to that of the last training item (at "
                f"other small distances {usual:.1f}), such as {name(int(last[place]))} and "
                f"{name(int(first[place]))}; they were numbered along whole sequences, as P5's "
                f"sequential ids are. Use ids made from training choices only"
            )
    return found


def _find_transitions(dataset: Dataset) -> tuple[IndexArray, IndexArray]:
    """Each user's last training and first held-out item, where training never has them in a row."""
    rows = dataset.interactions
    users, items = rows["user_index"].to_numpy(), rows["item_index"].to_numpy().astype(np.int64)
    training = (rows["split"] == "train").to_numpy()
    same = users[1:] == users[:-1]
    keys = items[:-1] * len(dataset.item_ids) + items[1:]
    known = np.sort(keys[same & training[1:] & training[:-1]])
    crossing = same & training[:-1] & ~training[1:] & (items[1:] != items[:-1])
    new = crossing & ~look_up(known, keys)[1]
    return items[:-1][new], items[1:][new]


def look_up(known: IndexArray, keys: IndexArray) -> tuple[IndexArray, Flags]:
    """Where each key stands among known ones, which rise, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.bool_)
    places = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return places, known[places] == keys


def _rank_sids(sids: Sequence[str]) -> IndexArray:
    """Each item's place in the order of codes, the first level first."""
    codes = [tuple(map(int, _CODE.findall(sid))) for sid in sids]
    rank = np.empty(len(sids), dtype=np.int64)
    rank[sorted(range(len(sids)), key=codes.__getitem__)] = np.arange(len(sids))
    return rank

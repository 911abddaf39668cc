"""Leaks in rows about no user: two items that belong together by held-out choices alone.

Owns telling whether anybody chose both of two items in training. Knows no row's making.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csc_matrix
from scipy.stats import binomtest

from genrec.data.dataset import Dataset
from genrec.prompts.audit_time import UNLIKELY, Findings
from genrec.types import IndexArray

OFTEN = 0.25
TIMES_CHANCE = 3
_PAIRS_AT_ONCE = 4096


class PairAudit:
    """Looks at pairs of items that stand together in rows without a user."""

    def __init__(self, dataset: Dataset, allowed: Sequence[str]) -> None:
        """Read who chose what, in the parts that may be shown and in all."""
        rows = dataset.interactions
        users, items = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
        free = rows["split"].is_in(list(allowed)).to_numpy()
        shape = (dataset.n_users, dataset.n_items)
        self._free, self._all = (
            csc_matrix(
                (np.ones(int(kept.sum()), dtype=np.int32), (users[kept], items[kept])), shape
            )
            for kept in (free, np.ones(len(users), dtype=np.bool_))
        )
        self._item_ids = dataset.item_ids
        self._counts: dict[str, IndexArray] = defaultdict(lambda: np.zeros(4, dtype=np.int64))
        self._examples: dict[str, str] = {}

    def add(self, template: str, first: IndexArray, second: IndexArray) -> None:
        """Look at pairs of one wording's rows."""
        for start in range(0, len(first), _PAIRS_AT_ONCE):
            one, two = (items[start : start + _PAIRS_AT_ONCE] for items in (first, second))
            strange = self._never_met(self._free, one, two)
            held = strange & ~self._never_met(self._all, one, two)
            other = np.roll(two, 1)
            chance = self._never_met(self._free, one, other) & ~self._never_met(
                self._all, one, other
            )
            self._counts[template] += [len(one), strange.sum(), held.sum(), chance.sum()]
            for place in np.flatnonzero(held)[:1].tolist():
                pair = self._item_ids[int(one[place])], self._item_ids[int(two[place])]
                self._examples.setdefault(template, f"{pair[0]!r} and {pair[1]!r}")

    @staticmethod
    def _never_met(
        chosen: csc_matrix, first: IndexArray, second: IndexArray
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        both = np.asarray(chosen[:, first].multiply(chosen[:, second]).sum(axis=0)).ravel()
        return np.asarray(both == 0)

    def find(self, found: Findings) -> None:
        """Add what was found in all the rows."""
        found.facts["pairs_without_user"] = int(sum(count[0] for count in self._counts.values()))
        for template, count in sorted(self._counts.items()):
            pairs, strange, held, chance = count.tolist()
            usual = max(chance, 1) / pairs
            often = held >= OFTEN * pairs and held >= TIMES_CHANCE * chance
            if held and (
                (held == strange and held > chance)
                or (often and binomtest(held, pairs, min(usual, 1.0)).pvalue < UNLIKELY)
            ):
                found.faults.append(
                    f"template {template!r} joins two items that only held-out choices join, in "
                    f"{held:,} of {pairs:,} pairs, such as {self._examples[template]}"
                )

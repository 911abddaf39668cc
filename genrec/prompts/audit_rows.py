"""Leaks in the written rows: held-out items, and what was said of them.

Owns comparing what rows name with the data's own split. Knows nothing of how a row came to be:
neither tasks nor the corpus are asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa
from scipy.stats import binomtest

from genrec.data.dataset import Dataset
from genrec.prompts.audit_ids import Flags, look_up
from genrec.prompts.audit_mentions import MentionReader, Slot
from genrec.prompts.audit_pairs import PairAudit
from genrec.prompts.audit_reviews import HeldReviews
from genrec.prompts.audit_time import UNLIKELY, Findings
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.types import IndexArray

OFTEN = 0.25
"""Share of a wording's rows with a held-out item that no honest sample of candidates reaches while
it is also `TIMES_CHANCE` as many as strangers' held-out items would be."""

TIMES_CHANCE = 3
EXAMPLES = 3


@dataclass(slots=True)
class _Count:
    """What one wording's rows show in one slot, of users who are known.

    A stranger is an item that its user did not choose in training: a wrong candidate, or a leak.
    """

    rows: int = 0
    strangers: int = 0
    held: int = 0
    rows_with_held: int = 0
    rows_by_chance: int = 0
    late: int = 0
    held_examples: list[str] = field(default_factory=list)
    late_examples: list[str] = field(default_factory=list)


class _Choices:
    """Which pairs of user and item are training choices, and which are held out."""

    def __init__(self, dataset: Dataset, allowed: Sequence[str]) -> None:
        rows = dataset.interactions
        self.n_items = dataset.n_items
        keys = self._pack(rows["user_index"].to_numpy(), rows["item_index"].to_numpy())
        places = np.flatnonzero(rows["split"].is_in(list(allowed)).to_numpy())
        free = keys[places]
        self._free, first = np.unique(free, return_index=True)
        self.first = places[first]
        self.last = places[len(free) - 1 - np.unique(free[::-1], return_index=True)[1]]
        self._held = np.sort(keys[~look_up(self._free, keys)[1]])

    def _pack(self, users: IndexArray, items: IndexArray) -> IndexArray:
        return users.astype(np.int64) * self.n_items + items

    def find(self, users: IndexArray, items: IndexArray) -> tuple[IndexArray, Flags]:
        """Places of pairs in `first` and `last`, and whether they are there at all."""
        return look_up(self._free, self._pack(users, items))

    def are_held(self, users: IndexArray, items: IndexArray) -> Flags:
        """Whether the user's choice of the item is held out, and never one that may be shown."""
        return look_up(self._held, self._pack(users, items))[1]


def _mark(n_rows: int, rows: IndexArray) -> Flags:
    marked = np.zeros(n_rows, dtype=np.bool_)
    marked[rows] = True
    return marked


class RowAudit:
    """Looks at rows table by table, and says at the end what was found."""

    def __init__(
        self,
        recipe: PromptsRecipe,
        dataset: Dataset,
        sids: Sequence[str],
        templates: Sequence[Template],
        allowed: Sequence[str] = ("train",),
    ) -> None:
        """Read what the rows are compared with.

        Args:
            recipe: limits of text, by which titles and reviews are cut.
            dataset: the data, whose split decides.
            sids: each item's semantic ids.
            templates: the wordings that rows may have.
            allowed: the parts of the split that rows may show.
        """
        self._dataset = dataset
        self._choices = _Choices(dataset, allowed)
        self._reader = MentionReader(recipe, dataset, sids, templates)
        self._reviews = HeldReviews(recipe, dataset, allowed)
        self._pairs = PairAudit(dataset, allowed)
        self._ordered = {t.id for t in templates if any(f.startswith("history") for f in t.fields)}
        self._counts: dict[tuple[str, Slot], _Count] = defaultdict(_Count)
        self._rows = self._mentions = 0
        self._quotes: list[str] = []
        self._n_quotes = 0

    def add(self, table: pa.Table) -> None:
        """Look at some rows."""
        self._rows += table.num_rows
        users = table["user_index"].to_numpy()
        asked = table["item_index"].to_numpy()
        encoded = table["template"].combine_chunks().dictionary_encode()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        for slot, rows, shown in self._reader.read(table):
            self._mentions += len(rows)
            known = users[rows] >= 0
            self._count_items(slot, names, codes, users, asked, rows[known], shown[known])
            paired = ~known & (asked[rows] >= 0) & (asked[rows] != shown)
            for code, name in enumerate(names if paired.any() else []):
                own = paired & (codes[rows] == code)
                self._pairs.add(name, shown[own], asked[rows[own]])
        for row, quote in self._reviews.find_quotes(table):
            self._n_quotes += 1
            if len(self._quotes) < EXAMPLES:
                self._quotes.append(f"template {names[codes[row]]!r}: {quote}")

    def _count_items(
        self,
        slot: Slot,
        names: Sequence[str],
        codes: IndexArray,
        users: IndexArray,
        asked: IndexArray,
        rows: IndexArray,
        shown: IndexArray,
    ) -> None:
        """Add what the rows show of users who are known, in one slot."""
        places, chosen = self._choices.find(users[rows], shown)
        late = np.flatnonzero(chosen)
        if slot == "prompt":
            late = late[self._are_late(users, asked, rows[late], shown[late], places[late])]
        else:
            late = late[:0]
        strange = np.flatnonzero(~chosen)
        held = strange[self._choices.are_held(users[rows[strange]], shown[strange])]
        others = np.where(np.roll(users, 1) == users, -1, np.roll(users, 1))
        chance = strange[self._choices.are_held(others[rows[strange]], shown[strange])]
        shown_rows, held_rows, chance_rows = (
            _mark(len(users), some) for some in (rows, rows[held], rows[chance])
        )
        for code, name in enumerate(names):
            own = codes == code
            if not (own & shown_rows).any():
                continue
            count = self._counts[name, slot]
            count.rows += int((own & shown_rows).sum())
            count.rows_with_held += int((own & held_rows).sum())
            count.rows_by_chance += int((own & chance_rows).sum())
            count.strangers += int(own[rows[strange]].sum())
            count.held += int(own[rows[held]].sum())
            count.late += int(own[rows[late]].sum())
            for examples, places in ((count.held_examples, held), (count.late_examples, late)):
                for place in places[own[rows[places]]][: EXAMPLES - len(examples)]:
                    examples.append(self._name_pair(users[rows[place]], shown[place]))

    def _are_late(
        self,
        users: IndexArray,
        asked: IndexArray,
        rows: IndexArray,
        shown: IndexArray,
        places: IndexArray,
    ) -> Flags:
        """Whether an item that is shown was first chosen after the last choice of the one asked."""
        targets, known = self._choices.find(users[rows], np.maximum(asked[rows], 0))
        after = self._choices.first[places] > self._choices.last[targets]
        return np.asarray(after & known & (asked[rows] >= 0) & (asked[rows] != shown))

    def _name_pair(self, user: int, item: int) -> str:
        known = self._dataset.users.filter(pl.col("user_index") == user)["user_id"]
        return f"item {self._dataset.item_ids[item]!r} of user {known.item()!r}"

    def find(self) -> Findings:
        """What was found in all the rows."""
        found = Findings([], [], {
            "rows": self._rows,
            "items_seen_in_rows": self._mentions,
            "held_out_reviews_looked_for": self._reviews.n_looked_for,
        })  # fmt: skip
        for (name, slot), count in sorted(self._counts.items()):
            _judge_held(name, slot, count, found)
            if count.late and not count.strangers and name in self._ordered:
                found.faults.append(
                    f"{count.late:,} items in the {slot} of template {name!r} were chosen only "
                    f"after the item that is asked for, such as {count.late_examples[0]}"
                )
        self._pairs.find(found)
        if self._n_quotes:
            found.faults.append(
                f"{self._n_quotes:,} rows quote a held-out review, such as "
                f"{'; '.join(self._quotes)}"
            )
        return found


def _judge_held(name: str, slot: Slot, count: _Count, found: Findings) -> None:
    """A fault where held-out items are shown for any other reason than chance among candidates."""
    if not count.held:
        return
    share, chance = count.rows_with_held / count.rows, count.rows_by_chance / count.rows
    test = binomtest(count.rows_with_held, count.rows, min(max(chance, 1 / count.rows), 1.0))
    often = share >= OFTEN and share >= TIMES_CHANCE * chance and test.pvalue < UNLIKELY
    where = "answer" if slot == "target" else slot
    if count.held == count.strangers or often:
        found.faults.append(
            f"template {name!r} shows held-out items in the {where} of {count.rows_with_held:,} of "
            f"{count.rows:,} rows, such as {', '.join(count.held_examples)}"
        )
        return
    # Who draws wrong candidates must not know what is held out, and so draws some of it.
    chance_facts = found.facts.setdefault("held_out_among_wrong_candidates", {})
    chance_facts[f"{name} {where}"] = [count.held, count.strangers]

"""The catalogue's versions: each change on disk before it is acknowledged, and at once for readers.

Owns the order of a change (plan, new edition, disk, current), and which edition is current. Knows
no HTTP; files are `version_log`'s, codes are `item_encoder`'s.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from genrec.catalogue import change_items, frame_items
from genrec.decode.engine import SwapsTrie
from genrec.errors import DataError, ModelError, UnknownItemError, join_problems
from genrec.recipe import hash_values
from genrec.recommender import Recommender
from genrec.serve.backend import Edition
from genrec.serve.catalogue_state import (
    Action,
    Change,
    StoredItem,
    VersionInfo,
    write_time,
)
from genrec.serve.item_codes import ItemCodes, NewItem
from genrec.serve.item_encoder import ItemEncoder, find_encoder
from genrec.serve.journal import Journal
from genrec.serve.version_log import Base, Pace, VersionLog
from genrec.tokenizers.sid_text import format_sid
from genrec.types import Unknown

Status = Literal["added", "returned", "updated", "unchanged"]
Entry = tuple[str, str, Status]
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PACE = Pace()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to.

    Attributes:
        version: the current one after it; the one before where nothing differed.
        n_items: how many items that has.
        entries: of items that were given, in their order: id, semantic ID, and what happened.
        removed: ids that went.
        n_switched: how many items became available, or no longer are.
    """

    version: int
    n_items: int
    entries: tuple[Entry, ...] = ()
    removed: tuple[str, ...] = ()
    n_switched: int = 0


class CatalogueStore:
    """The versions of one model's catalogue in one directory. Threads may share it."""

    def __init__(
        self,
        journal: Journal,
        recommender: Recommender,
        encoder: ItemEncoder | None = None,
        *,
        why_no_encoder: str = "it was started without the model's tokenizer",
        pace: Pace = _PACE,
    ) -> None:
        """Bring the last version back; see `open_store`.

        Args:
            journal: of a locked directory.
            recommender: the model with its own items.
            encoder: codes for new items; without one, only items that had codes can be added.
            why_no_encoder: for messages.
            pace: when segments begin and end.

        Raises:
            ArtifactError: a store of other items, or a damaged one.
        """
        own = recommender.catalogue
        self._journal = journal
        self._codes = ItemCodes(own, encoder, why_no_encoder)
        self._lock = threading.Lock()
        self._publish: Callable[[Edition], None] | None = None
        digest = hash_values([list(pair) for pair in zip(own.item_ids, own.sids, strict=True)])
        base = Base(digest, own.n_items, own.rows.__contains__)
        self._log = VersionLog(journal, base, pace)
        held = self._log.held
        whole = Change(tuple(held.items.values()), tuple(held.gone))
        self._edition = build_edition(self.info.version, recommender, whole, held.off)

    @property
    def edition(self) -> Edition:
        """The current version, ready to answer."""
        return self._edition

    @property
    def info(self) -> VersionInfo:
        """What is told of the current version."""
        return self._log.versions[-1]

    @property
    def n_unavailable(self) -> int:
        """How many items of the current version cannot be had."""
        return len(self._log.held.off)

    def follow(self, publish: Callable[[Edition], None]) -> None:
        """Tell someone of the edition now, and of each new one before its change is answered."""
        with self._lock:
            self._publish = publish
            publish(self._edition)

    def list_versions(self) -> tuple[VersionInfo, ...]:
        """The versions that can be had back, oldest first, the current one last."""
        return tuple(self._log.versions)

    def encode_texts(self, texts: Sequence[str]) -> list[str]:
        """The semantic ID that each text is nearest to, for histories; see `ItemEncoder`.

        Raises:
            DataError: no tokenizer, or nothing to embed texts with.
            ModelError: the encoder's model cannot be loaded.
        """
        return self._codes.require_encoder("a text needs codes").encode_texts(texts)

    def add_items(self, items: Sequence[NewItem]) -> Outcome:
        """Add items, or describe ones anew that are there: all of them, or none.

        No code moves: an item that is there, or was, has its own; others get free ones.

        Raises:
            CapacityError: no room for all of them.
            DataError: no item or an id twice, neither text nor embedding, or no encoder.
            StoreFullError: the disk is full.
            StoreWriteError: the disk has another fault.
        """
        _check_ids([item.item_id for item in items])
        with self._lock:
            planned = self._codes.plan(items, self._log.held.codes)
            found = [(item, self._find_status(item)) for item in planned]
            wanted = {i.item_id: i.available for i in items if i.available is not None}
            off, on = self._switch(wanted)
            new = tuple(item for item, status in found if status != "unchanged")
            change = Change(new, off=off, on=on)
            entries = tuple((item.item_id, format_sid(item.codes), s) for item, s in found)
            return self._commit("add", change, entries)

    def remove_items(self, item_ids: Sequence[str], unknown: Unknown = "error") -> Outcome:
        """Remove items: all of them, or none. Their codes stay theirs.

        Raises:
            DataError: no item or an id twice, or none would be left.
            StoreFullError: the disk is full.
            StoreWriteError: the disk has another fault.
            UnknownItemError: ids that are not there, and `unknown` is `error`.
        """
        _check_ids(item_ids)
        with self._lock:
            known = self._find_known(item_ids, unknown)
            n_items = self._edition.recommender.n_items
            if len(known) == n_items:
                raise DataError(
                    f"all {n_items:,} items would be removed, and a catalogue needs at least one; "
                    f"keep one, or make them unavailable instead"
                )
            return self._commit("remove", Change(removed=tuple(known)))

    def set_availability(
        self, available: Mapping[str, bool], unknown: Unknown = "error"
    ) -> Outcome:
        """Say which items can be had: all of them, or none. Histories may hold any.

        Raises:
            DataError: no item.
            StoreFullError: the disk is full.
            StoreWriteError: the disk has another fault.
            UnknownItemError: ids that are not there, and `unknown` is `error`.
        """
        _check_ids(list(available))
        with self._lock:
            known = self._find_known(list(available), unknown)
            off, on = self._switch({item_id: available[item_id] for item_id in known})
            return self._commit("availability", Change(off=off, on=on))

    def roll_back(self, version: int) -> Outcome:
        """Bring back what a version held, as a new version.

        Raises:
            ArtifactError: the version's segment is damaged.
            DataError: no such version, or it is not kept any more.
            StoreFullError: the disk is full.
            StoreWriteError: the disk has another fault.
        """
        with self._lock:
            kept = self._log.versions
            if not kept[0].version <= version <= kept[-1].version:
                raise DataError(
                    f"version {version} is not there; {kept[0].version} to {kept[-1].version} can "
                    f"be had back"
                )
            change = self._log.held.diff(self._log.recall(version), self._codes.find_own)
            return self._commit("rollback", change, content_of=version)

    def close(self) -> None:
        """Give the directory free, once a change that is under way is done."""
        with self._lock:
            self._journal.close()

    def _commit(
        self,
        action: Action,
        change: Change,
        entries: tuple[Entry, ...] = (),
        content_of: int | None = None,
    ) -> Outcome:
        """Make a change the current version, the lock being held; if it fails, nothing differs."""
        before = self._edition
        if not change:
            return Outcome(before.version, before.recommender.n_items, entries)
        away = {*change.removed, *change.on}
        off = [item_id for item_id in self._log.held.off if item_id not in away]
        edition = build_edition(before.version + 1, before.recommender, change, [*off, *change.off])
        rows = before.recommender.catalogue.rows
        n_added = sum(item.item_id not in rows for item in change.items)
        info = VersionInfo(
            edition.version,
            write_time(),
            action,
            edition.recommender.n_items,
            added=n_added,
            updated=len(change.items) - n_added,
            removed=len(change.removed),
            switched=len(change.off) + len(change.on),
            content_of=content_of,
        )
        self._log.append(info, change)
        self._edition = edition
        if self._publish is not None:
            self._publish(edition)
        return Outcome(info.version, info.items, entries, change.removed, info.switched)

    def _find_status(self, item: StoredItem) -> Status:
        if item.item_id in self._edition.recommender.catalogue.rows:
            held = self._log.held.items.get(item.item_id)
            if held is None:
                own = self._codes.find_own(item.item_id)
                is_same = (item.title, item.categories) == (own.title, own.categories)
            else:
                is_same = item == held
            return "unchanged" if is_same else "updated"
        known = self._codes.recall(item.item_id, self._log.held.codes)
        return "added" if known is None else "returned"

    def _switch(self, available: Mapping[str, bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Which of these items become unavailable, and which available again."""
        held = self._log.held.off
        off = tuple(i for i, value in available.items() if not value and i not in held)
        return off, tuple(i for i, value in available.items() if value and i in held)

    def _find_known(self, item_ids: Sequence[str], unknown: Unknown) -> list[str]:
        rows = self._edition.recommender.catalogue.rows
        missing = [repr(item_id) for item_id in item_ids if item_id not in rows]
        if missing and unknown == "error":
            subject = (
                f"the catalogue (version {self._edition.version}) lacks these items; leave them "
                f'out, or pass "unknown": "skip"'
            )
            raise UnknownItemError(join_problems(subject, missing))
        return [item_id for item_id in item_ids if item_id in rows]


def open_store(
    path: Path,
    recommender: Recommender,
    tokenizer: Path | None = None,
    *,
    model: Path | None = None,
    pace: Pace = _PACE,
) -> CatalogueStore:
    """The store in a directory, which is made if missing and locked until `close`.

    Args:
        path: the store's directory.
        recommender: the model with its own items.
        tokenizer: the artefact that the model's items have their codes from; None takes the one
            that the model names, where it is still there.
        model: the model's directory; None if it has none.
        pace: when segments begin and end.

    Raises:
        ArtifactError: another server has it, it belongs to other items, or it is damaged.
        DataError: a tokenizer that was named and cannot code items that come later.
        ModelError: an engine whose items cannot change, or another model's tokenizer.
        StoreFullError: there is no room to begin.
    """
    engine = recommender.engine
    if not isinstance(engine, SwapsTrie):
        raise ModelError(
            f"the items of a {type(engine).__name__} cannot change while it runs; serve this model "
            f"without a catalogue store"
        )
    catalogue = recommender.catalogue
    sids = dict(zip(catalogue.item_ids, catalogue.sids, strict=True))
    sizes, loss = engine.codebook_sizes, "new items cannot be added"
    encoder, why = find_encoder(tokenizer, model, sids, sizes, loss=loss)
    journal = Journal.open(path)
    with ExitStack() as lock:  # a store that cannot be opened leaves its directory free
        lock.callback(journal.close)
        store = CatalogueStore(journal, recommender, encoder, why_no_encoder=why, pace=pace)
        lock.pop_all()
    return store


def build_edition(version: int, before: Recommender, change: Change, off: Iterable[str]) -> Edition:
    """The edition after a change, over the same weights.

    Args:
        version: the new one.
        before: with the items before; unchanged.
        change: to its items.
        off: all items that cannot be had after it.
    """
    rows = before.catalogue.rows
    after = before
    if change.items or change.removed:
        engine = before.engine
        assert isinstance(engine, SwapsTrie), "`open_store` has looked"
        items = change.items
        replaced = [rows[item.item_id] for item in items if item.item_id in rows]
        removed = [rows[item_id] for item_id in change.removed]
        codes = np.array([item.codes for item in items], dtype=np.int32)
        new = frame_items(
            [item.item_id for item in items],
            [item.title for item in items],
            [format_sid(item.codes) for item in items],
            [item.categories for item in items],
        )
        trie, index = change_items(
            engine.trie, before.catalogue.index, [*replaced, *removed], new, codes
        )
        after = before.replace_items(trie, index)
        # Else the first request with a filter would wait for these.
        _ = after.catalogue.category_masks, trie.leaves
    unavailable = [after.catalogue.rows[item_id] for item_id in off]
    if not unavailable:
        return Edition(version, after)
    available = np.ones(after.n_items, dtype=np.bool_)
    available[unavailable] = False
    return Edition(version, after, available)


def _check_ids(item_ids: Sequence[str]) -> None:
    counts = Counter(item_ids)
    problems = [f"{item_id!r} comes twice" for item_id, count in counts.items() if count > 1]
    problems += [
        f"{item_id!r} holds control characters, or white space at an end"
        for item_id in counts
        if _HIDDEN.search(item_id) or item_id != item_id.strip() or not item_id
    ]
    if not item_ids:
        raise DataError("the change names no item; give at least one")
    if problems:
        raise DataError(join_problems("the items' ids", problems))

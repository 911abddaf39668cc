"""The versions of a catalogue in a journal: written down, read back at start, recalled.

Owns which record says what, when a new segment begins and how many are kept. Knows no model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

from genrec.errors import ArtifactError
from genrec.serve.catalogue_state import Change, Holding, VersionInfo, write_time
from genrec.serve.journal import Journal, Segment, StoreFullError, StoreWriteError

FIRST_VERSION = 1
"""The model's own items."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """What versions are differences from.

    Attributes:
        digest: tells the model's items from another model's.
        n_items: how many there are.
        is_own: whether an id is one of them.
    """

    digest: str
    n_items: int
    is_own: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a segment begins, and how many are kept; a rollback reaches as far back.

    Attributes:
        changes: a segment ends after so many,
        n_bytes: or when they are larger than this and than the state at its start.
        segments: how many are kept.
    """

    changes: int = 1000
    n_bytes: int = 16 << 20
    segments: int = 4


class VersionLog:
    """The versions in a journal. One thread at a time may change it."""

    def __init__(self, journal: Journal, base: Base, pace: Pace) -> None:
        """Read the last version back, or begin with the model's own items.

        Raises:
            ArtifactError: a store of another model, or a damaged one.
            StoreFullError: there is no room to begin.
            StoreWriteError: it cannot be begun for another reason.
        """
        self._journal = journal
        self._base = base
        self._pace = pace
        self.held = Holding()
        self.versions: list[VersionInfo] = []
        self._n_changes = 0
        self._state_bytes = 0
        numbers = journal.list_numbers()
        if not numbers:
            self.versions.append(VersionInfo(FIRST_VERSION, write_time(), "start", base.n_items))
            self._begin_segment()
            return
        segment = journal.read(numbers[-1])
        self._check_model(segment)
        journal.resume(numbers[-1], segment)
        self._state_bytes = segment.state_end
        self._n_changes = len(segment.changes)
        self.versions += [VersionInfo(**record) for record in segment.head["versions"]]
        self.held = Holding.read(segment.state)
        for record in segment.changes:
            self.held.apply(Change.read(record["change"]), base.is_own)
            self.versions.append(VersionInfo(**record["info"]))

    def append(self, info: VersionInfo, change: Change) -> None:
        """Write a version; it is on disk before this returns.

        Raises:
            StoreFullError: there is no room; nothing was changed.
            StoreWriteError: another fault; nothing was changed.
        """
        self._journal.append({"info": asdict(info), "change": change.spell()})
        self.held.apply(change, self._base.is_own)
        self.versions.append(info)
        self._n_changes += 1
        grown = self._journal.n_bytes - self._state_bytes
        is_long = grown > max(self._pace.n_bytes, self._state_bytes)
        if self._n_changes >= self._pace.changes or is_long:
            try:
                self._begin_segment()
            except (StoreFullError, StoreWriteError) as error:
                # The change itself is safe, and so are the next ones; a later one tries again.
                _log.warning("the catalogue store goes on in its long segment: %s", error)
                self._n_changes, self._state_bytes = 0, self._journal.n_bytes

    def recall(self, version: int) -> Holding:
        """What a version held.

        Args:
            version: one of `versions`.

        Raises:
            ArtifactError: its segment is damaged or gone.
        """
        number = max((n for n in self._journal.list_numbers() if n <= version), default=version)
        segment = self._journal.read(number)
        if number + len(segment.changes) < version:
            raise ArtifactError(
                f"the segment with version {version} is missing from {self._journal.folder}; "
                f"restore it, or roll back to a version up to {number + len(segment.changes)}"
            )
        held = Holding.read(segment.state)
        for record in segment.changes[: version - number]:
            held.apply(Change.read(record["change"]), self._base.is_own)
        return held

    def _begin_segment(self) -> None:
        version = self.versions[-1].version
        numbers = self._journal.list_numbers()
        kept = numbers[max(0, len(numbers) - self._pace.segments + 1) :]
        first = kept[0] if kept else version
        versions = [info for info in self.versions if info.version >= first]
        head = {
            "version": version,
            "model": self._base.digest,
            "versions": [asdict(info) for info in versions],
        }
        self._journal.begin(version, head, list(self.held.spell()))
        self._state_bytes = self._journal.n_bytes
        self._n_changes = 0
        self.versions = versions
        self._journal.forget(number for number in numbers if number < first)

    def _check_model(self, segment: Segment) -> None:
        if segment.head["model"] != self._base.digest:
            raise ArtifactError(
                f"the catalogue store {self._journal.folder} was made for other items "
                f"({segment.head['model'][:12]}) than this model's ({self._base.digest[:12]}): "
                f"codes in it mean nothing here; serve the model that it was made for, or give "
                f"this one a directory of its own"
            )

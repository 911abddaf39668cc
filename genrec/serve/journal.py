"""Records on disk that outlive the process: what was appended is there, or was not acknowledged.

Owns the files of one directory, their form, and which damage is a killed write and which is not.
Knows nothing of what a record says, but that it is a JSON object.

A segment is a file of lines, each a checksum, a length and a JSON object. It begins with a head
that says how many lines after it are the state at its start; the lines after these are changes. A
segment appears whole, under its name, or not at all; changes are appended, each synced before it
counts. A new segment with the state so far keeps the time to start short.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from genrec.errors import ArtifactError, GenrecError

Record = dict[str, Any]
LOCK_FILE = "lock"
_SCHEMA = 1
_NAME = "segment-{:012d}.jsonl"
_PART = ".part"
_OWN_NAME = re.compile(r"segment-(\d{12})\.jsonl(\.part)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)


class StoreFullError(GenrecError):
    """The disk has no room for a change; nothing was changed."""


class StoreWriteError(GenrecError):
    """A change could not be written for another reason; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment holds.

    Attributes:
        head: what was said of it when it was made.
        state: the records of the state at its start.
        changes: those appended since.
        state_end: the bytes up to the last record of the state.
        end: the bytes up to the last whole record.
        torn: bytes after it, of a write that was killed.
    """

    head: Record
    state: Sequence[Record]
    changes: Sequence[Record]
    state_end: int
    end: int
    torn: int


class Journal:
    """The segments of one directory, which no other process may write meanwhile."""

    def __init__(self, folder: Path, lock: int) -> None:
        """Take over a locked directory; see `open`."""
        self.folder = folder
        self._lock = lock
        self._file = -1
        self._end = 0
        self._is_settled = True

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The journal of a directory, which is made if missing and locked until `close`.

        Raises:
            ArtifactError: another process has it, it holds other files, or it cannot be written.
        """
        try:
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if is_new:
                _sync_folder(folder.parent)
            _refuse_foreign(folder)
            lock = _lock_folder(folder)
            for part in folder.glob(f"*{_PART}"):
                part.unlink()  # a segment that was never finished
        except OSError as error:
            raise ArtifactError(
                f"the catalogue store {folder} cannot be written: {error}; check the path and its "
                f"permissions, or choose another directory"
            ) from error
        return cls(folder, lock)

    def close(self) -> None:
        """Give the directory free."""
        for handle in (self._file, self._lock):
            if handle >= 0:
                os.close(handle)
        self._file = self._lock = -1

    @property
    def n_bytes(self) -> int:
        """The length of the current segment."""
        return self._end

    def list_numbers(self) -> list[int]:
        """The numbers of the segments, rising."""
        names = map(_OWN_NAME.fullmatch, os.listdir(self.folder))
        return sorted(int(name[1]) for name in names if name and not name[2])

    def read(self, number: int) -> Segment:
        """What a segment holds.

        Raises:
            ArtifactError: it is damaged.
        """
        return read_segment(self.folder / _NAME.format(number))

    def resume(self, number: int, segment: Segment) -> None:
        """Append to a segment from now on; what a killed write left of a record is cut off.

        Raises:
            ArtifactError: the file cannot be written.
        """
        path = self.folder / _NAME.format(number)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            self._end = segment.end
            if segment.torn:
                _log.warning(
                    "%s: the last %d bytes are of a change that was being written when the server "
                    "was killed, and never acknowledged; they are dropped",
                    path,
                    segment.torn,
                )
                self._is_settled = False
                self._settle()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error}; check its permissions") from (
                error
            )

    def append(self, record: Record) -> None:
        """Write a record; it is on disk before this returns.

        Raises:
            StoreFullError: there is no room; the record is not there.
            StoreWriteError: another fault; the record is not there.
        """
        line = _write_line(record)
        try:
            self._settle()
            self._is_settled = False
            _write_all(self._file, line, self._end)
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):  # then the next append tries again first
                self._settle()
            _explain_fault(error, self.folder)
        self._is_settled = True
        self._end += len(line)

    def begin(self, number: int, head: Record, state: Sequence[Record]) -> None:
        """Go on in a new segment that holds the state so far.

        Args:
            number: above those there are.
            head: what is to be said of it.
            state: records of it.

        Raises:
            StoreFullError: there is no room; the current segment goes on.
            StoreWriteError: another fault; the current segment goes on.
        """
        path = self.folder / _NAME.format(number)
        part = path.with_name(path.name + _PART)
        whole = {"schema": _SCHEMA, "parts": len(state)} | head
        file = -1
        try:
            self._settle()
            size = _write_file(part, map(_write_line, (whole, *state)))
            file = os.open(part, os.O_WRONLY | os.O_CLOEXEC)
            part.replace(path)
        except OSError as error:
            if file >= 0:
                os.close(file)
            with suppress(OSError):
                part.unlink()
            _explain_fault(error, self.folder)
        if self._file >= 0:
            os.close(self._file)
        # From here a restart may find the new segment, so that changes must go into it.
        self._file, self._end = file, size
        self._is_settled = False
        with suppress(OSError):  # then the next append tries again first
            self._settle()

    def forget(self, numbers: Iterable[int]) -> None:
        """Delete segments; one that cannot be is left, and said in the log."""
        for number in numbers:
            path = self.folder / _NAME.format(number)
            try:
                path.unlink()
            except OSError as error:
                _log.warning("%s is no longer needed and cannot be deleted: %s", path, error)

    def _settle(self) -> None:
        """Bring the disk to where the last acknowledged record ends.

        A failed write leaves any part of its bytes behind, and a failed sync says nothing of what
        the disk has: only a cut that is itself synced makes sure that they do not come back.
        """
        if self._is_settled:
            return
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        _sync_folder(self.folder)
        self._is_settled = True


def read_segment(path: Path) -> Segment:
    """What a segment file holds.

    Raises:
        ArtifactError: it cannot be read, was written by another genrec, or a record is damaged that
            was acknowledged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    records: list[Record] = []
    end = state_end = 0
    while end < len(data):
        stop = data.find(b"\n", end) + 1
        record = _parse_line(data[end:stop]) if stop else None
        if record is None:
            rest = data[end:]
            # A killed write leaves its record short; a dead machine also leaves pages of zeros,
            # which no record holds.
            if stop in (0, len(data)) and (not stop or b"\0" in rest) and _is_state_whole(records):
                break
            _refuse_damage(path, records, end)
        if not _is_state_whole(records):
            state_end = stop
        records.append(record)
        end = stop
    if not _is_state_whole(records):
        _refuse_damage(path, records, end)
    head = records[0]
    if head.get("schema") != _SCHEMA:
        raise ArtifactError(
            f"{path} has schema {head.get('schema')!r}, but this genrec reads {_SCHEMA}; serve it "
            f"with the version that wrote it"
        )
    n_state = 1 + head["parts"]
    return Segment(head, records[1:n_state], records[n_state:], state_end, end, len(data) - end)


def _is_state_whole(records: Sequence[Record]) -> bool:
    """Whether head and state are there; they were synced before the file had its name."""
    return bool(records) and len(records) > records[0].get("parts", 0)


def _refuse_damage(path: Path, records: Sequence[Record], end: int) -> NoReturn:
    if _is_state_whole(records):
        way_out = (
            f"give up this change and all after it with `truncate -s {end} {path}` (the "
            f"{len(records)} lines before it are intact)"
        )
    else:
        way_out = "delete the file (the segment before it, if there is one, then goes on)"
    raise ArtifactError(
        f"{path} is damaged: line {len(records) + 1}, at byte {end:,}, is not what was written, "
        f"and no killed write leaves it so. Restore the file from a backup; or {way_out}; or begin "
        f"again in another directory"
    )


def _write_line(record: Record) -> bytes:
    payload = json.dumps(record, separators=(",", ":")).encode("ascii")
    return b"%08x %d %b\n" % (zlib.crc32(payload), len(payload), payload)


def _parse_line(line: bytes) -> Record | None:
    """The record of a line; None where it is not as it was written."""
    words = line[:-1].split(b" ", 2)
    if len(words) != 3:  # noqa: PLR2004 - checksum, length, record
        return None
    checksum, length, payload = words
    if checksum != b"%08x" % zlib.crc32(payload) or length != b"%d" % len(payload):
        return None
    record = json.loads(payload)
    assert isinstance(record, dict), "its checksum says that we wrote it"
    return record


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _write_file(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file whose bytes are on disk when this returns; how many they are."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    size = 0
    try:
        for line in lines:
            _write_all(file, line, size)
            size += len(line)
        os.fsync(file)
    finally:
        os.close(file)
    return size


def _sync_folder(folder: Path) -> None:
    """Make sure of the names in a directory: a file's own sync does not cover its name."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock_folder(folder: Path) -> int:
    """A handle that locks the directory until it is closed, or its process ends however it does.

    Raises:
        ArtifactError: another process holds it.
    """
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise ArtifactError(
            f"the catalogue store {folder} is in use by another server (process {holder}); two "
            f"cannot write one: stop that one, or give this one a directory of its own"
        ) from error
    with suppress(OSError):  # for the message above only; the disk may be full
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _refuse_foreign(folder: Path) -> None:
    names = sorted(os.listdir(folder))
    foreign = [name for name in names if name != LOCK_FILE and not _OWN_NAME.fullmatch(name)]
    if foreign:
        raise ArtifactError(
            f"{folder} holds files that no catalogue store has, such as {foreign[0]!r}; choose an "
            f"empty or new directory"
        )


def _explain_fault(error: OSError, folder: Path) -> NoReturn:
    if error.errno in _FULL:
        raise StoreFullError(
            f"the disk of the catalogue store is full ({error.strerror}), so nothing was changed; "
            f"free some space and send the change again"
        ) from error
    raise StoreWriteError(
        f"the catalogue store {folder} cannot be written ({error}), so nothing was changed"
    ) from error

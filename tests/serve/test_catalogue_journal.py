"""What was appended is there, or was not acknowledged: cut files, full disks, damage, locks."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genrec.errors import ArtifactError
from genrec.serve import journal as journal_module
from genrec.serve.journal import Journal, StoreFullError, StoreWriteError, read_segment

HEAD = {"what": "a head"}
STATE = [{"n": 1}, {"n": 2, "title": "two\nlines \0 \ud83d \u2603"}]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal with a segment of a head and two records of state."""
    opened = Journal.open(tmp_path / "store")
    opened.begin(1, HEAD, STATE)
    yield opened
    opened.close()


def segment_of(journal: Journal, number: int = 1) -> Path:
    return journal.folder / f"segment-{number:012d}.jsonl"


def reopen(folder: Path) -> Journal:
    again = Journal.open(folder)
    number = again.list_numbers()[-1]
    again.resume(number, again.read(number))
    return again


def test_records_come_back_as_they_were(journal: Journal) -> None:
    changes = [{"change": number, "text": '"\\\n\u2028é'} for number in range(5)]
    for change in changes:
        journal.append(change)
    found = journal.read(1)
    assert found.head["what"] == "a head"
    assert (found.state, found.changes, found.torn) == (STATE, changes, 0)
    assert found.end == journal.n_bytes == segment_of(journal).stat().st_size
    assert segment_of(journal).read_bytes().isascii()


def test_a_journal_cut_at_any_byte_holds_a_whole_number_of_changes(
    journal: Journal, tmp_path: Path
) -> None:
    ends = [journal.n_bytes]
    for number in range(4):
        journal.append({"change": number, "text": "x" * number})
        ends.append(journal.n_bytes)
    data = segment_of(journal).read_bytes()
    cut = tmp_path / "segment-000000000001.jsonl"
    for size in range(ends[0], len(data) + 1):
        cut.write_bytes(data[:size])
        found = read_segment(cut)
        whole = sum(end <= size for end in ends[1:])
        assert [change["change"] for change in found.changes] == list(range(whole))
        assert (found.end, found.torn) == (ends[whole], size - ends[whole])
    # The state had its name only when it was whole, so that no killed write leaves these.
    for size in range(ends[0]):
        cut.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match=r"damaged: line \d.* delete the file"):
            read_segment(cut)


def test_a_torn_tail_is_dropped_and_said(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append({"change": 0})
    end = journal.n_bytes
    journal.close()
    path = segment_of(journal)
    for tail in (b"0badc0de 20 {", b"\0" * 700, b"1234" + b"\0" * 600 + b"}\n"):
        with path.open("ab") as file:
            file.write(tail)
        with caplog.at_level(logging.WARNING):
            again = reopen(journal.folder)
        assert f"the last {len(tail)} bytes" in caplog.text
        assert path.stat().st_size == end
        again.append({"change": 1})
        assert [record["change"] for record in again.read(1).changes] == [0, 1]
        again.close()
        os.truncate(path, end)
        caplog.clear()


def test_damage_that_no_kill_leaves_is_refused(journal: Journal) -> None:
    ends = []
    for number in range(3):
        ends.append(journal.n_bytes)
        journal.append({"change": number})
    path = segment_of(journal)
    data = path.read_bytes()
    for place in (ends[1] + 3, ends[1] + 10, ends[2] - 3, len(data) - 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        line, end = (6, ends[2]) if place > ends[2] else (5, ends[1])
        with pytest.raises(
            ArtifactError, match=rf"line {line}, at byte {end:,}.*truncate -s {end}"
        ):
            journal.read(1)
    os.truncate(path, ends[1])  # as the message says
    assert [record["change"] for record in journal.read(1).changes] == [0]
    path.write_bytes(b"\n" + data)
    with pytest.raises(ArtifactError, match="line 1, at byte 0"):
        journal.read(1)


def test_another_schema_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    payload = b'{"schema":9,"parts":0}'
    path = tmp_path / "segment"
    path.write_bytes(b"%08x %d %b\n" % (zlib.crc32(payload), len(payload), payload))
    with pytest.raises(ArtifactError, match="has schema 9, but this genrec reads 1"):
        read_segment(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_segment(tmp_path / "nothing")


def test_two_servers_cannot_have_one_directory(journal: Journal) -> None:
    match = rf"in use by another server \(process {os.getpid()}\).*directory of its own"
    with pytest.raises(ArtifactError, match=match):
        Journal.open(journal.folder)
    journal.close()
    reopen(journal.folder).close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from genrec.serve.journal import Journal;"
        "held = Journal.open(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match=rf"process {other.pid}\)"):
            Journal.open(tmp_path / "store")
        other.kill()
    Journal.open(tmp_path / "store").close()


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"such as 'model\.safetensors'; choose an empty"):
        Journal.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot be written.*choose another directory"):
        Journal.open(tmp_path / "file" / "store")
    assert not (tmp_path / "lock").exists()


def test_a_segment_that_was_never_finished_is_no_segment(journal: Journal) -> None:
    journal.append({"change": 0})
    journal.close()
    part = journal.folder / "segment-000000000002.jsonl.part"
    part.write_bytes(b"half")
    again = reopen(journal.folder)
    assert again.list_numbers() == [1] and not part.exists()
    again.close()


def test_a_segment_that_cannot_be_opened_for_writing_is_explained(journal: Journal) -> None:
    segment = journal.read(1)
    with pytest.raises(ArtifactError, match=r"cannot be written: .*check its permissions"):
        journal.resume(7, segment)


def test_forgotten_segments_are_deleted_where_that_is_possible(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.begin(5, HEAD, [])
    journal.forget([1, 3])
    assert journal.list_numbers() == [5]
    assert "is no longer needed and cannot be deleted" in caplog.text


class FailingDisk:
    """The module's `os`, of which the n-th call that touches the disk fails, and all after it."""

    names = ("pwrite", "fsync", "ftruncate", "open")

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.left = 10**9
        self.code = code
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._guard(name, real) if name in self.names else real

    def _guard(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            self.left -= 1
            if self.left >= 0:
                return real(*args)
            if name == "pwrite" and self.left == -1:  # a full disk takes a part of it
                real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            raise OSError(self.code, os.strerror(self.code))

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """A disk that can be made to fail."""
    failing = FailingDisk()
    monkeypatch.setattr(journal_module, "os", failing)
    return failing


def test_a_full_disk_changes_nothing_wherever_it_comes(journal: Journal, disk: FailingDisk) -> None:
    journal.append({"change": 0})
    start = len(disk.calls)
    journal.append({"change": 1})
    n_calls = len(disk.calls) - start
    assert n_calls == 2  # write, sync
    for fails_at in range(n_calls):
        end = journal.n_bytes
        disk.left = fails_at
        with pytest.raises(StoreFullError, match=r"disk .* is full .*nothing was changed; free"):
            journal.append({"change": "lost"})
        disk.left = 0  # still full: the cut before the write fails
        with pytest.raises(StoreFullError):
            journal.append({"change": "lost"})
        assert journal.n_bytes == end
        disk.left = 10**9
        journal.append({"change": 2 + fails_at})
    assert [record["change"] for record in journal.read(1).changes] == [0, 1, 2, 3]
    assert journal.read(1).torn == 0


def test_a_failed_write_leaves_nothing_for_a_restart_to_find(
    journal: Journal, disk: FailingDisk
) -> None:
    journal.append({"change": 0})
    disk.left = 1  # the record is written whole, and only its sync fails
    with pytest.raises(StoreFullError):
        journal.append({"change": "lost"})
    assert len(journal.read(1).changes) == 2  # the cut failed, too
    disk.left = 10**9
    journal.append({"change": 1})
    journal.close()
    again = reopen(journal.folder)
    assert [record["change"] for record in again.read(1).changes] == [0, 1]
    again.close()


def test_a_full_disk_leaves_the_segment_that_was(journal: Journal, disk: FailingDisk) -> None:
    journal.append({"change": 0})
    start = len(disk.calls)
    journal.begin(2, HEAD, STATE)
    calls = disk.calls[start:]
    journal.append({"change": 1})
    n_before_name = len(calls) - 4  # after it: cut, sync, and the folder opened and synced
    assert calls[n_before_name:] == ["ftruncate", "fsync", "open", "fsync"]
    for fails_at in range(n_before_name):
        disk.left = fails_at
        with pytest.raises(StoreFullError):
            journal.begin(3, HEAD, STATE)
        assert journal.list_numbers() == [1, 2]
        disk.left = 10**9
        journal.append({"change": 2 + fails_at})
    for number, fails_at in enumerate(range(n_before_name, len(calls)), start=3):
        disk.left = fails_at
        journal.begin(number, HEAD, STATE)  # it has its name, so that a restart would find it
        with pytest.raises(StoreFullError):
            journal.append({"change": "lost"})  # but nothing counts before the name is synced
        disk.left = 10**9
        journal.append({"change": number})
        assert [record["change"] for record in journal.read(number).changes] == [number]
    assert not list(journal.folder.glob("*.part"))


def test_a_name_that_cannot_be_given_leaves_the_segment_that_was(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for a name")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(StoreFullError):
            journal.begin(2, HEAD, STATE)
    journal.append({"change": 0})
    assert journal.list_numbers() == [1]


def test_another_fault_of_the_disk_is_no_full_one(journal: Journal, disk: FailingDisk) -> None:
    disk.code, disk.left = errno.EIO, 1
    with pytest.raises(StoreWriteError, match=r"cannot be written \(.*Input/output error"):
        journal.append({"change": 0})


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        journal = Journal.open(tmp_path / "store")
        journal.begin(1, HEAD, STATE)
        written = 0
        with pytest.raises(StoreFullError, match="No space left on device"):
            while True:
                journal.append({"change": written, "text": "x" * 3000})
                written += 1
        with pytest.raises(StoreFullError):
            journal.begin(2, HEAD, [{"text": "x" * 70_000}])
        journal.append({"change": written})  # a small one fits
        assert [record["change"] for record in journal.read(1).changes] == list(range(written + 1))
        journal.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

"""Versions in segments: read back, recalled, forgotten."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from genrec.errors import ArtifactError
from genrec.serve.catalogue_state import Change, Holding, StoredItem, VersionInfo
from genrec.serve.journal import Journal, StoreFullError
from genrec.serve.version_log import Base, Pace, VersionLog

BASE = Base("a" * 64, 3, {"own0", "own1", "own2"}.__contains__)


def change_to(version: int) -> Change:
    """The change that makes a version: one item more, and one that cannot be had."""
    item_id = f"item{version}"
    codes = (version // 100, version % 100)
    item = StoredItem(item_id, f"title {version}", "", "x" * (version % 50), codes)
    return Change(items=(item,), off=(item_id,) if version % 2 else ())


def hold_all(version: int) -> Holding:
    held = Holding()
    for earlier in range(2, version + 1):
        held.apply(change_to(earlier), BASE.is_own)
    return held


def open_log(folder: Path, pace: Pace | None = None, base: Base = BASE) -> VersionLog:
    return VersionLog(Journal.open(folder), base, pace or Pace())


def append_to(log: VersionLog, last: int) -> None:
    for version in range(log.versions[-1].version + 1, last + 1):
        log.append(VersionInfo(version, "now", "add", 3 + version), change_to(version))


def close(log: VersionLog) -> None:
    log._journal.close()


@pytest.mark.parametrize("changes", [1, 2, 5, 1000])
def test_versions_come_back_whatever_the_segments(tmp_path: Path, changes: int) -> None:
    pace = Pace(changes=changes, segments=3)
    for last in (1, 4, 5, 11, 12):
        log = open_log(tmp_path, pace)
        append_to(log, last)
        close(log)
        log = open_log(tmp_path, pace)
        assert log.versions[-1].version == last
        assert log.held == hold_all(last)
        for info in log.versions:
            assert log.recall(info.version) == hold_all(info.version)
        assert [v.version for v in log.versions] == list(range(log.versions[0].version, last + 1))
        close(log)
    assert log.versions[0].version == {1: 10, 2: 7, 5: 1, 1000: 1}[changes]
    assert len(log._journal.list_numbers()) == min(3, 1 + 11 // changes)


def test_a_segment_ends_when_it_is_large(tmp_path: Path) -> None:
    log = open_log(tmp_path, Pace(n_bytes=1000))
    append_to(log, 60)
    assert 1 < len(log._journal.list_numbers()) <= 4
    # Half of a segment at most is changes, once the state is large.
    assert len(log._journal.list_numbers()) < 60 * 250 / 1000
    close(log)


def test_a_new_segment_that_fails_is_no_failed_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, Pace(changes=2))

    def refuse(*_: object) -> None:
        raise StoreFullError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "begin", refuse)
        with caplog.at_level(logging.WARNING):
            append_to(log, 4)
    assert caplog.text.count("goes on in its long segment: no room") == 1
    append_to(log, 5)
    assert log._journal.list_numbers() == [1, 5]
    assert log.recall(4) == hold_all(4)
    close(log)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "begin", refuse)
        with pytest.raises(StoreFullError):
            open_log(tmp_path / "new")


def test_a_store_of_other_items_is_refused(tmp_path: Path) -> None:
    close(open_log(tmp_path))
    other = Base("b" * 64, 3, BASE.is_own)
    with pytest.raises(ArtifactError, match=r"other items \(a{12}\) than this model's \(b{12}\)"):
        open_log(tmp_path, base=other)


def test_a_missing_segment_is_said(tmp_path: Path) -> None:
    log = open_log(tmp_path, Pace(changes=3))
    append_to(log, 8)
    assert log._journal.list_numbers() == [1, 4, 7]
    log._journal.forget([4])
    assert log.recall(4) == hold_all(4)
    with pytest.raises(ArtifactError, match=r"version 5 is missing .* up to 4"):
        log.recall(5)
    close(log)

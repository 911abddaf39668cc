"""Progress: log lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import logging
import sys

import pytest

from genrec import progress
from genrec.progress import show_progress, track_progress


def test_log_lines_name_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), show_progress("embedding", 10, unit="items") as advance:
        advance(4, note="loss 1.5")
    assert "embedding: 4/10 items" in caplog.text
    assert "s left, loss 1.5" in caplog.text


def test_lines_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), show_progress("embedding", 10) as advance:
        advance(1)
    assert not caplog.text


def test_tracking_gives_the_same_items() -> None:
    assert list(track_progress(iter([1, 2]), "x")) == [1, 2]
    assert list(track_progress([3], "x")) == [3]


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_progress("embedding items", 2, unit="items") as advance:
        advance(2, note="loss 0.1")
    assert "embedding items" in capsys.readouterr().err

"""The peak of this process's memory, with and without Linux's files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from genrec import memory
from genrec.memory import read_peak, reset_peak


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's proc(5)")
def test_the_peak_is_counted_anew() -> None:
    held = bytearray(200_000_000)
    before = read_peak()
    del held
    reset_peak()
    assert read_peak() < before - 100_000_000


def test_memory_is_measured_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda _: Path("/nowhere/at/all"))
    reset_peak()
    assert read_peak() > 1_000_000


def test_a_kernel_that_refuses_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("genrec"), "propagate", True)
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)  # a folder cannot be written to
    with caplog.at_level(logging.DEBUG, logger="genrec"):
        reset_peak()
    assert "refuses to reset" in caplog.text

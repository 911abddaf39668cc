"""kill -9 at any moment: what was acknowledged is there, what was not is whole or absent."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from genrec.errors import ArtifactError
from genrec.serve.journal import Journal
from tests.serve.catalogue_writer import hold_all, open_log

REPOSITORY = Path(__file__).resolve().parents[2]


def write_until_killed(folder: Path, seconds: float) -> int:
    """The last version that a killed process acknowledged; 1 if none."""
    command = [sys.executable, "-m", "tests.serve.catalogue_writer", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        lines = [first]
        reader = threading.Thread(target=lambda: lines.extend(writer.stdout))  # type: ignore[arg-type]
        reader.start()
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        reader.join()
        assert writer.wait() == -signal.SIGKILL
    whole = [line for line in lines if line.endswith("\n")]
    return int(whole[-1]) if whole else 1


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    chance = random.Random(11)
    folder = tmp_path / "store"
    for _ in range(20):
        acknowledged = write_until_killed(folder, chance.uniform(0, 0.08))
        log = open_log(folder)
        version = log.versions[-1].version
        assert acknowledged <= version <= acknowledged + 1
        assert log.held == hold_all(version)
        for info in log.versions[:: max(1, len(log.versions) // 5)]:
            assert log.recall(info.version) == hold_all(info.version)
        log._journal.close()
    assert version > 100


@contextmanager
def serve(run: Path, store: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server on a free port, and its process, which is ended."""
    code = "from genrec.cli import main; main()"
    command = [
        sys.executable, "-c", code, "serve", str(run / "model"), "--store", str(store),
        "--port", "0", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as server:
        assert server.stdout is not None
        first = server.stdout.readline()
        try:
            yield first.split()[-1], server
        finally:
            server.kill()


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.mark.slow
def test_a_killed_server_comes_back_with_its_catalogue(tiny_run: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    lamp = {"items": [{"item_id": "lamp", "title": "Folding Lamp"}]}
    with serve(tiny_run, store) as (address, server):
        assert ask(address, "/v1/catalog/items", lamp)["version"] == 2
        with pytest.raises(ArtifactError, match=rf"another server \(process {server.pid}\)"):
            Journal.open(store)
        server.send_signal(signal.SIGKILL)
        server.wait()
    with serve(tiny_run, store) as (address, _):
        assert ask(address, "/v1/catalog")["version"] == 2
        wanted = {"history": ["B0001", {"text": "a lamp"}], "filters": {"allow": ["lamp"]}}
        answer = ask(address, "/v1/recommendations", wanted)
        assert [item["item_id"] for item in answer["items"]] == ["lamp"]
        assert answer["version"] == 2

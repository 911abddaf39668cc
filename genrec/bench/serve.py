"""The server under load, from half of what it can do to ten times that.

Owns the measurement and its rows: latency percentiles of accepted requests against load, what else
comes back, and memory. Server and client share the machine, so the client's own needs are in the
figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.bench.load import HttpTarget, LoadResult, send_closed, send_open
from genrec.bench.rows import BenchRow, build_row, report_rows
from genrec.errors import ModelError

LOADS = (0.5, 1.0, 2.0, 5.0, 10.0)
ACCEPTED = {200, 429, 503}
_UNLOADED = 0.1
_START_SECONDS = 120.0
_SMALL_RUN = (
    "quickstart", "--until", "train", "data.n_users=400", "train.max_steps=20", "base.epochs=0.1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServeBench:
    """How long and on what.

    Attributes:
        model: a model directory; None trains a small one first.
        seconds: of all loads together; finding the capacity comes on top.
        k: answers a request.
        clients: that ask at once when the capacity is found.
        quick: short, to see that it runs; targets are left out.
        arguments: further words for `genrec serve`.
    """

    model: Path | None = None
    seconds: float = 600.0
    k: int = 10
    clients: int = 32
    quick: bool = False
    arguments: Sequence[str] = ()

    def target(self, value: float) -> float | None:
        """The target, unless the run is a short one."""
        return None if self.quick else value


def bench_serve(options: ServeBench) -> dict[str, Any]:
    """The figures as `genrec bench` writes them.

    Raises:
        ModelError: the server did not start; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="genrec-bench-") as folder:
        model = options.model or _train_model(Path(folder))
        bodies = _write_bodies(model, options.k)
        with run_server(model, options.arguments, Path(folder) / "server.log") as server:
            return report_rows(asyncio.run(_measure(server, bodies, options)))


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    def read_memory_mb(self) -> float:
        """The megabytes of memory that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextmanager
def run_server(model: Path, arguments: Sequence[str], log: Path) -> Iterator[Server]:
    """A server in a process of its own, ready when the block begins and gone when it ends.

    Raises:
        ModelError: it ended, or was not ready in two minutes; with its last words.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "genrec", "--quiet", "serve", str(model), "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, *arguments], stdout=stream, stderr=stream)
        try:
            _wait_until_ready(port, process, log)
            yield Server(port, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                if answer.status == 200:  # noqa: PLR2004
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise ModelError(f"the server did not get ready; its last words:\n{words}")


def _train_model(folder: Path) -> Path:
    """A small model of the built-in catalogue: what is measured is the server, not its taste."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "genrec",
            "--quiet",
            "run",
            *_SMALL_RUN,
            "--out",
            str(folder / "run"),
        ],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return folder / "run" / "model"


def _write_bodies(model: Path, k: int, n_bodies: int = 500) -> list[bytes]:
    """Requests with histories of 1 to 20 items."""
    item_ids = pl.read_parquet(model / "item_index.parquet")["item_id"].to_list()
    random = np.random.default_rng(0)
    bodies = []
    for size in random.integers(1, 21, n_bodies).tolist():
        history = [item_ids[row] for row in random.integers(0, len(item_ids), size)]
        bodies.append(json.dumps({"history": history, "k": k}).encode())
    return bodies


async def _measure(server: Server, bodies: Sequence[bytes], options: ServeBench) -> list[BenchRow]:
    target = HttpTarget("127.0.0.1", server.port, "/v1/recommendations")
    short = 2.0 if options.quick else 20.0
    try:
        await send_closed(target, bodies, 2, short / 4)
        found = await send_closed(target, bodies, options.clients, short)
        capacity = found.statuses[200] / found.wall_seconds
        unloaded = await send_open(target, bodies, _UNLOADED * capacity, short)
        memory = [server.read_memory_mb()]
        rows = [
            build_row(f"capacity, {options.clients} clients", capacity, "requests/s"),
            *_describe_load(f"{_UNLOADED:g}x (unloaded)", unloaded, None, options),
        ]
        for load in LOADS:
            seconds = options.seconds / len(LOADS)
            result = await send_open(target, bodies, load * capacity, seconds)
            memory.append(server.read_memory_mb())
            rows += _describe_load(f"{load:g}x", result, unloaded, options)
    finally:
        await target.close()
    return [*rows, *_describe_memory(memory, options)]


def _describe_load(
    name: str, result: LoadResult, unloaded: LoadResult | None, options: ServeBench
) -> list[BenchRow]:
    strange = sum(n for status, n in result.statuses.items() if status not in ACCEPTED)
    n_all = sum(result.statuses.values())
    rows = [
        build_row(f"{name}: p{p}", 1000 * result.find_percentile(p), "ms") for p in (50, 90, 99)
    ]
    rows += [
        build_row(f"{name}: answered", result.statuses[200] / result.wall_seconds, "requests/s"),
        build_row(f"{name}: refused", 100 * (1 - result.statuses[200] / n_all), "%"),
        build_row(
            f"{name}: other than 200, 429, 503 ({_list_statuses(result.statuses)})",
            strange,
            "answers",
            most=options.target(0),
        ),
        build_row(f"{name}: latest request went out after", 1000 * result.late_seconds, "ms"),
    ]
    if unloaded is not None:
        rows.insert(
            3,
            build_row(
                f"{name}: p99",
                result.find_percentile(99) / unloaded.find_percentile(99),
                "times",
                most=options.target(2.0),
                against="p99 unloaded",
            ),
        )
    return rows


def _list_statuses(statuses: Counter[int]) -> str:
    return ", ".join(f"{status}: {n:,}" for status, n in sorted(statuses.items()))


def _describe_memory(memory: Sequence[float], options: ServeBench) -> list[BenchRow]:
    """After the first load everything that is kept is there; then memory must not grow."""
    return [
        build_row("memory after the first load", memory[1], "MB"),
        build_row(
            "memory after all loads",
            memory[-1] / memory[1],
            "times",
            most=options.target(1.1),
            against="memory after the first load",
        ),
    ]

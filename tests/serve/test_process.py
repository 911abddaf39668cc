"""A real server process: clients that are slow or leave, and the end after SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest

pytestmark = pytest.mark.slow
NDJSON = {"Content-Type": "application/x-ndjson"}


class Running:
    """A server process and what it said."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.client = httpx2.Client(base_url=url, timeout=30)

    def connect(self) -> socket.socket:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def read_metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])


@contextmanager
def start(model: Path, folder: Path, *arguments: str) -> Iterator[Running]:
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "genrec", "serve", str(model), "--port", "0", "--device", "cpu",
             *arguments],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "http://" in first, log.read_text()
        running = Running(process, first.split()[-1], log)
        with running.client:
            yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def read_until(sender: socket.socket, end: bytes) -> bytes:
    """What comes up to some bytes."""
    found = b""
    while end not in found:
        piece = sender.recv(10_000)
        assert piece, found
        found += piece
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def item_id(tiny_run: Path) -> str:
    return str(pl.read_parquet(tiny_run / "data" / "items.parquet")["item_id"][0])


@pytest.fixture(scope="module")
def line(item_id: str) -> bytes:
    return json.dumps({"history": [item_id], "k": 50}).encode() + b"\n"


def test_sigterm_lets_running_requests_finish(
    tiny_run: Path, tmp_path: Path, item_id: str, line: bytes
) -> None:
    with start(tiny_run / "model", tmp_path) as server:
        body = {"history": [item_id], "k": 2}
        assert server.client.post("/v1/recommendations", json=body).status_code == 200
        stream = server.client.stream(
            "POST", "/v1/recommendations/stream", content=line * 100, headers=NDJSON
        )
        with stream as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            with httpx2.Client(base_url=server.url, timeout=10) as other:
                wait_until(lambda: other.get("/readyz").status_code == 503)
                assert other.get("/readyz").json()["state"] == "draining"
                assert other.post("/v1/recommendations", json=body).status_code == 503
            assert len([json.loads(one)["answer"]["items"] for one in lines]) == 99
        assert server.process.wait(timeout=20) == 0
        logged = [json.loads(one) for one in server.log.read_text().splitlines()]
        assert any(one["message"].startswith("draining: 1 request") for one in logged)
        assert not any("trace" in one for one in logged)
        with pytest.raises(httpx2.ConnectError):
            server.client.get("/readyz")


def test_what_does_not_finish_in_time_is_cut_off(
    tiny_run: Path, tmp_path: Path, line: bytes
) -> None:
    with start(tiny_run / "model", tmp_path, "--drain-seconds", "0.3") as server:
        with (
            server.client.stream(
                "POST", "/v1/recommendations/stream", content=line * 2000, headers=NDJSON
            ) as answer,
            pytest.raises(httpx2.RemoteProtocolError),
        ):
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass
        assert server.process.wait(timeout=10) == 0


def test_clients_that_do_nothing_or_leave(
    tiny_run: Path, tmp_path: Path, item_id: str, line: bytes
) -> None:
    limits = ("head_seconds=0.5", "write_seconds=0.5", "body_seconds=0.5")
    with start(tiny_run / "model", tmp_path, *limits) as server:
        # A head that never ends, from the first byte or after an answer.
        with closing(server.connect()) as silent, closing(server.connect()) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'{"status":"ok"}' in read_until(slow, b"}")
            slow.sendall(b"GET /healthz HT")
            assert silent.recv(10) == b""
            assert slow.recv(10) == b""
        # A body that never ends.
        with closing(server.connect()) as slow:
            slow.sendall(
                b"POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\n"
                b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"history"'
            )
            assert b"408 Request Timeout" in read_until(slow, b"}")
        # An answer that nobody takes: the server gives up, and works for others meanwhile.
        head = (
            "POST /v1/recommendations/stream HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(line) * 20_000}\r\n\r\n"
        )
        with closing(server.connect()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(head.encode() + line * 20_000)
            wait_until(lambda: server.read_metric("genrec_requests_running") == 1)
            body = {"history": [item_id]}
            assert server.client.post("/v1/recommendations", json=body).status_code == 200
            wait_until(lambda: server.read_metric("genrec_requests_running") == 0, 25)
        # One that leaves while its answer is made.
        with closing(server.connect()) as leaving:
            leaving.sendall(head.encode() + line * 20_000)
            wait_until(lambda: server.read_metric("genrec_requests_running") == 1)
        wait_until(lambda: server.read_metric("genrec_requests_running") == 0)
        assert server.read_metric("genrec_queue_depth") == 0
        assert server.read_metric("genrec_invalid_answers_total") == 0
        assert server.client.post("/v1/recommendations", json=body).status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=10) == 0

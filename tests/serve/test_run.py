"""A server on a real socket, in this process: clients that do nothing, and the end."""

from __future__ import annotations

import json
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx2

from genrec.recommender import Recommender
from genrec.serve import run
from genrec.serve.app import build_app
from genrec.serve.service import Service
from tests.serve.conftest import MakeService


@contextmanager
def running(service: Service, monkeypatch: Any) -> Iterator[tuple[str, Any]]:
    """The URL of a server in a thread, and uvicorn's server."""
    urls: queue.Queue[str] = queue.Queue()
    made: list[Any] = []
    start = run._Server.__init__

    def keep(self: Any, *arguments: Any) -> None:
        made.append(self)
        start(self, *arguments)

    monkeypatch.setattr(run._Server, "__init__", keep)
    bound = run.bind_port(service.settings)
    thread = threading.Thread(
        target=run.run_server, args=(build_app(service), service, bound, urls.put)
    )
    thread.start()
    try:
        yield urls.get(timeout=10), made[0]
    finally:
        made[0].handle_exit(signal.SIGTERM, None)
        thread.join(10)
        bound.close()
    assert not thread.is_alive()


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_clients_that_do_nothing_are_let_go(
    make_service: MakeService, recommender: Recommender, monkeypatch: Any
) -> None:
    service = make_service(port=0, head_seconds=0.2, write_seconds=0.2)
    line = json.dumps({"history": [recommender.item_ids[0]], "k": 50}).encode() + b"\n"
    size = len(line) * 3000
    with running(service, monkeypatch) as (url, _):
        with closing(connect(url)) as silent, closing(connect(url)) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while b"}" not in found:
                found += slow.recv(1000)
            slow.sendall(b"GET /heal")
            assert slow.recv(10) == b""
            assert silent.recv(10) == b""
        with closing(socket.socket()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            host, _, port = url.removeprefix("http://").partition(":")
            deaf.connect((host, int(port)))
            head = "POST /v1/recommendations/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            deaf.sendall(f"{head}application/x-ndjson\r\nContent-Length: {size}\r\n\r\n".encode())
            deaf.sendall(line * 3000)
            end = time.monotonic() + 15
            while service.running == 0 and time.monotonic() < end:
                time.sleep(0.01)
            while service.running and time.monotonic() < end:
                time.sleep(0.01)
            assert service.running == 0
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_a_server_that_is_told_twice_ends_at_once(
    make_service: MakeService, monkeypatch: Any
) -> None:
    service = make_service(port=0, linger_seconds=60)
    with running(service, monkeypatch) as (url, server):
        server.handle_exit(signal.SIGTERM, None)
        assert httpx2.get(f"{url}/readyz").status_code == 503
        server.handle_exit(signal.SIGTERM, None)
        assert not server.should_exit
        server.handle_exit(signal.SIGINT, None)
        assert server.should_exit

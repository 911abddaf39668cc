"""An application called without a socket, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI


class Call:
    """One request whose client sends what it is told, when it is told, and may leave."""

    def __init__(self, app: FastAPI, path: str, headers: dict[str, str] | None = None) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.reads = asyncio.Event()
        self.reads.set()
        given = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }
        self.task = asyncio.create_task(app(scope, self.inbox.get, self._take))

    def send(self, body: bytes, *, more: bool = False) -> Call:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    def json(self) -> Any:
        return json.loads(self.body)

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            await self.reads.wait()
            self.body += message["body"]


async def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def run_with(app: FastAPI, test: Callable[[], Any]) -> None:
    """Run an asynchronous test while an application is up."""

    async def run() -> None:
        async with app.router.lifespan_context(app):
            async with asyncio.timeout(20):
                await test()

    asyncio.run(run())

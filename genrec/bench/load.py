"""Open-loop load: requests go out when they are due, however the server does.

Owns the schedule, the connections and what came back. A client that waits for answers before it
asks again (closed loop) hides the waiting that it causes; this one measures from when a request was
due. Knows HTTP/1.1 as far as one server of ours speaks it, and no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_NO_ANSWER = 0
_GIVE_UP_SECONDS = 60.0
_REFUSED_SECONDS = 0.1


@dataclass(slots=True)
class LoadResult:
    """What came back.

    Attributes:
        statuses: how many answers each status had; 0 counts connections that failed.
        seconds: of the requests that were answered with 200, from when they were due.
        late_seconds: how late the busiest request went out: more than some milliseconds means that
            the client, not the server, was at its limit.
        wall_seconds: from the first request due to the last answer.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    late_seconds: float = 0.0
    wall_seconds: float = 0.0

    def find_percentile(self, percent: float) -> float:
        """The latency that so many percent of accepted requests stay within; NaN without any."""
        return float(np.percentile(self.seconds, percent)) if self.seconds else float("nan")


class HttpTarget:
    """Keep-alive connections to one server, as many as there are requests at once."""

    def __init__(self, host: str, port: int, path: str) -> None:
        """Say where requests go; nothing is opened yet."""
        self._host, self._port = host, port
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        )
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, body: bytes) -> int:
        """The status that answers a body; 0 where the connection failed."""
        request = f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while self._free:
            # Idle connections may have been closed meanwhile: the next one, or a new one, is tried.
            status = await self._ask(self._free.pop(), request)
            if status != _NO_ANSWER:
                return status
        try:
            fresh = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return _NO_ANSWER
        return await self._ask(fresh, request)

    async def _ask(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes
    ) -> int:
        reader, writer = connection
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = dict(
                    line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
                )
                await reader.readexactly(int(fields.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            await _close(writer)
            return _NO_ANSWER
        if fields.get("connection") == "close":
            await _close(writer)
        else:
            self._free.append(connection)
        return int(head.split(" ", 2)[1])

    async def close(self) -> None:
        """Close what is open."""
        for _, writer in self._free:
            await _close(writer)
        self._free.clear()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def send_open(
    target: HttpTarget, bodies: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Poisson arrivals at a rate, for so long; answers are waited for after the last.

    Args:
        target: the server.
        bodies: sent in turn.
        rate: requests a second.
        seconds: how long requests go out.
        seed: of the arrival times.
    """
    random = np.random.default_rng(seed)
    n_requests = max(int(rate * seconds), 1)
    due = np.cumsum(random.exponential(1 / rate, n_requests))
    due *= seconds / max(float(due[-1]), 1e-9)
    result = LoadResult()
    tasks: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    async def send(at: float, body: bytes) -> None:
        result.late_seconds = max(result.late_seconds, time.perf_counter() - at)
        status = await target.send(body)
        result.statuses[status] += 1
        if status == 200:  # noqa: PLR2004  (HTTP's word for "here it is")
            result.seconds.append(time.perf_counter() - at)

    for number, offset in enumerate(due.tolist()):
        pause = started + offset - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(send(started + offset, bodies[number % len(bodies)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    result.wall_seconds = time.perf_counter() - started
    return result


async def send_closed(
    target: HttpTarget, bodies: Sequence[bytes], clients: int, seconds: float
) -> LoadResult:
    """So many clients, each asking again as soon as it is answered: the most a server can do."""
    result = LoadResult()
    started = time.perf_counter()

    async def run(client: int) -> None:
        number = client
        while time.perf_counter() - started < seconds:
            at = time.perf_counter()
            status = await target.send(bodies[number % len(bodies)])
            number += clients
            result.statuses[status] += 1
            if status == 200:  # noqa: PLR2004
                result.seconds.append(time.perf_counter() - at)
            else:  # who is refused comes back later, or refusing is all that a server does
                await asyncio.sleep(_REFUSED_SECONDS)

    await asyncio.gather(*(run(client) for client in range(clients)))
    result.wall_seconds = time.perf_counter() - started
    return result

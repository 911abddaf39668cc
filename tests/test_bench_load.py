"""The load generator against a server whose answers are known."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import pytest

from genrec.bench.load import HttpTarget, LoadResult, send_closed, send_open

Respond = Callable[[int], tuple[int, str]]


def run_against(
    respond: Respond, work: Callable[[HttpTarget], Awaitable[LoadResult]], pause: float = 0.0
) -> LoadResult:
    """Run `work` against a server that answers its n-th request as `respond(n)` says."""

    async def main() -> LoadResult:
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            while True:
                try:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                except asyncio.IncompleteReadError:
                    break
                assert head.startswith("POST /v1/recommendations HTTP/1.1\r\n")
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                assert await reader.readexactly(length) == b'{"k": 3}'
                status, more = respond(count)
                count += 1
                await asyncio.sleep(pause)
                if status:
                    writer.write(
                        f"HTTP/1.1 {status} X\r\n{more}Content-Length: 2\r\n\r\nok".encode()
                    )
                if not status or "close" in more:
                    break
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = HttpTarget("127.0.0.1", server.sockets[0].getsockname()[1], "/v1/recommendations")
        result = await work(target)
        await target.close()
        server.close()
        while tasks := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            await asyncio.wait(tasks)
        return result

    return asyncio.run(main())


def test_every_request_goes_out_and_is_counted_by_status() -> None:
    result = run_against(
        lambda n: (429 if n % 4 == 0 else 200, ""),
        lambda target: send_open(target, [b'{"k": 3}'], rate=400, seconds=0.25),
    )
    assert sum(result.statuses.values()) == 100
    assert set(result.statuses) == {200, 429}
    assert len(result.seconds) == result.statuses[200] == 75
    assert 0.2 < result.wall_seconds < 1


def test_waiting_counts_from_when_a_request_was_due() -> None:
    slow = run_against(
        lambda _: (200, ""),
        lambda target: send_open(target, [b'{"k": 3}'], rate=200, seconds=0.1),
        pause=0.05,
    )
    assert slow.find_percentile(50) >= 0.05
    assert slow.wall_seconds < 0.1 + 0.05 + 0.1, "they do not wait for each other"


def test_closed_connections_are_opened_anew_and_lost_answers_are_counted() -> None:
    closing = run_against(
        lambda _: (200, "Connection: close\r\n"),
        lambda target: send_open(target, [b'{"k": 3}'], rate=100, seconds=0.1),
    )
    assert closing.statuses == {200: 10}
    silent = run_against(
        lambda _: (0, ""),
        lambda target: send_open(target, [b'{"k": 3}'], rate=100, seconds=0.1),
    )
    assert silent.statuses == {0: 10}
    assert math.isnan(silent.find_percentile(99))


def test_no_server_is_counted_too() -> None:
    async def main() -> LoadResult:
        return await send_open(HttpTarget("127.0.0.1", 1, "/"), [b"{}"], rate=50, seconds=0.1)

    assert asyncio.run(main()).statuses == {0: 5}


def test_clients_ask_again_when_they_are_answered() -> None:
    result = run_against(
        lambda _: (200, ""),
        lambda target: send_closed(target, [b'{"k": 3}'], clients=4, seconds=0.2),
        pause=0.01,
    )
    assert 4 * 0.2 / 0.01 * 0.3 < result.statuses[200] <= 4 * 0.2 / 0.01 + 4


def test_an_idle_connection_that_was_closed_costs_no_answer() -> None:
    async def work(target: HttpTarget) -> LoadResult:
        first = await send_open(target, [b'{"k": 3}'], rate=10, seconds=0.1)
        for _, writer in target._free:
            writer.close()
            await writer.wait_closed()
        second = await send_open(target, [b'{"k": 3}'], rate=10, seconds=0.1)
        first.statuses.update(second.statuses)
        return first

    assert run_against(lambda _: (200, ""), work).statuses == {200: 2}


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_percentiles(percent: int) -> None:
    result = LoadResult(seconds=[0.1, 0.2, 0.3])
    assert result.find_percentile(percent) == pytest.approx(0.1 + 0.2 * percent / 100)

"""The queue before an engine, job by job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from genrec.serve.backend import BackendDownError, DeadlineError, QueueFullError
from genrec.serve.batcher import JobQueue, QueueLimits, Ticket


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def make_queue(
    max_jobs: int = 9, max_wait_seconds: float = 9, batch_jobs: int = 9, batch_cost: int = 99
) -> JobQueue[str]:
    return JobQueue(QueueLimits(max_jobs, max_wait_seconds, batch_jobs, batch_cost))


def put(queue: JobQueue[str], job: str, *, cost: int = 1, seconds: float = 60) -> Ticket[str]:
    """A job whose key is its first letter."""
    ticket = Ticket(job, job[0], cost, time.monotonic() + seconds)
    queue.put(ticket)
    return ticket


def take(queue: JobQueue[str]) -> list[str]:
    return [ticket.job for ticket in queue.take_batch()]


def test_like_jobs_run_together_and_none_is_overtaken_for_ever() -> None:
    async def test() -> None:
        queue = make_queue()
        for job in ("a1", "b1", "a2", "c1", "b2"):
            put(queue, job)
        assert [take(queue) for _ in range(4)] == [["a1", "a2"], ["b1", "b2"], ["c1"], []]

    run(test)


def test_a_batch_has_a_size_and_a_cost() -> None:
    async def test() -> None:
        queue = make_queue(batch_jobs=2)
        for number in range(5):
            put(queue, f"a{number}")
        assert [len(take(queue)) for _ in range(3)] == [2, 2, 1]
        queue = make_queue(batch_cost=10)
        for job, cost in (("a1", 50), ("a2", 6), ("a3", 4), ("a4", 1)):
            put(queue, job, cost=cost)
        assert [take(queue) for _ in range(3)] == [["a1"], ["a2", "a3"], ["a4"]]

    run(test)


def test_a_full_queue_refuses() -> None:
    async def test() -> None:
        queue = make_queue(max_jobs=2)
        put(queue, "a1")
        put(queue, "a2")
        with pytest.raises(QueueFullError, match="2 requests wait, which is all"):
            put(queue, "a3")
        assert len(queue) == 2

    run(test)


def test_what_would_wait_too_long_is_refused_at_once() -> None:
    async def test() -> None:
        queue = make_queue(max_wait_seconds=5)
        queue.note_batch(1, 3.0)
        put(queue, "a1")
        with pytest.raises(QueueFullError, match=r"some 3\.0 s of work") as caught:
            put(queue, "a2", seconds=2)
        assert caught.value.retry_seconds == pytest.approx(3.0)
        put(queue, "a2")
        with pytest.raises(QueueFullError, match=r"some 6\.0 s"):
            put(queue, "a3")

    run(test)


def test_the_estimate_follows_what_batches_take() -> None:
    async def test() -> None:
        queue = make_queue()
        queue.note_batch(2, 4.0)
        for number in range(3):
            put(queue, f"a{number}")
        assert queue.estimate_wait() == pytest.approx(6.0)
        queue.take_batch()
        assert queue.estimate_wait() == pytest.approx(6.0, abs=0.1)  # it runs now
        queue.note_batch(3, 3.0)
        put(queue, "a4")
        assert queue.estimate_wait() == pytest.approx(1.8)

    run(test)


def test_late_and_unwanted_jobs_do_not_run() -> None:
    async def test() -> None:
        queue = make_queue()
        late, gone, wanted = put(queue, "a1", seconds=0), put(queue, "a2"), put(queue, "a3")
        gone.result.cancel()
        assert queue.take_batch() == [wanted]
        with pytest.raises(DeadlineError, match="waited until its deadline"):
            await late.result
        other = put(queue, "a4")
        other.result.cancel()
        await asyncio.sleep(0)
        assert len(queue) == 0

    run(test)


def test_all_that_wait_can_be_told() -> None:
    async def test() -> None:
        queue = make_queue()
        waits, gone = put(queue, "a1"), put(queue, "a2")
        gone.result.cancel()
        queue.fail_all(BackendDownError("gone"))
        with pytest.raises(BackendDownError, match="gone"):
            await waits.result
        assert len(queue) == 0

    run(test)

"""A vLLM as a backend: every job is a task on the event loop, and vLLM batches what they ask.

Owns how many jobs are inside the engine and how many wait, and what happens when the engine's
process ends: jobs get their error, the server turns unready, and another engine is started. Knows
no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from genrec.decode.vllm_async import AsyncVllmEngine, EngineGoneError
from genrec.decode.vllm_items import VllmItems
from genrec.decode.writer import TextPart
from genrec.errors import GenrecError
from genrec.serve.backend import (
    BackendDownError,
    DeadlineError,
    QueueFullError,
    RankJob,
    State,
    TextJob,
)
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.types import RankedItems

StartEngine = Callable[[], Awaitable[AsyncVllmEngine]]
_RECENT = 0.2  # how much the latest job counts in the time that one is thought to take
_TEXT_RETRY_SECONDS = 2.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RestartPace:
    """How an engine that ended is started again.

    Attributes:
        check_seconds: how often a silent engine is looked after.
        first_seconds: the pause before the first start; it doubles with each that fails,
        longest_seconds: up to this.
        most_failures: after so many in a row no other is started.
        stable_seconds: an engine that lived so long has not failed.
    """

    check_seconds: float = 0.5
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    most_failures: int = 5
    stable_seconds: float = 120.0


class VllmBackend:
    """Ranks with one vLLM, which outlives editions and is replaced when it dies."""

    name = "vllm"

    def __init__(
        self,
        start_engine: StartEngine,
        settings: ServeSettings,
        metrics: ServeMetrics,
        adapters: tuple[str, ...] = (),
        ends: frozenset[int] = frozenset(),
        pace: RestartPace = RestartPace(),
    ) -> None:
        """Nothing runs before `start`.

        Args:
            start_engine: starts an engine and checks it.
            settings: how many jobs are inside and wait.
            metrics: told of queue and refusals.
            adapters: what jobs may name.
            ends: tokens that end a text.
            pace: how an engine that ended is started again.
        """
        self._start_engine = start_engine
        self._settings = settings
        self._metrics = metrics
        self._adapters = adapters
        self._ends = ends
        self._pace = pace
        self._state: State = "starting"
        self._engine: AsyncVllmEngine | None = None
        self._started = 0.0
        self._failures = 0
        self._watcher: asyncio.Task[None] | None = None
        self._alarm = asyncio.Event()
        self._places = asyncio.Semaphore(settings.batch_jobs)
        self._n_waiting = 0
        self._n_texts = 0
        self._seconds_per_job = 0.0
        self._running: set[asyncio.Task[Any]] = set()
        metrics.watch(metrics.queued, lambda: float(self._n_waiting))

    @property
    def state(self) -> State:
        """Whether jobs are taken, and if not, why."""
        return self._state

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that jobs may name."""
        return self._adapters

    async def start(self) -> None:
        """Start the engine, which checks that it obeys the trie, and take jobs.

        Raises:
            GenrecError: it does not start, or gives what the trie forbids.
        """
        await self._take_engine()
        self._state = "ready"
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self, drain_seconds: float) -> None:
        """Take no more jobs, finish those that are taken for at most so long, and end."""
        self._state = "draining"
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        end = time.monotonic() + drain_seconds
        # A text is a job after another, one for each piece.
        while (self._running or self._n_texts) and time.monotonic() < end:
            await asyncio.sleep(min(0.02, max(end - time.monotonic(), 0)))
        engine, self._engine = self._engine, None
        for task in self._running:
            task.cancel()
        if engine is not None:
            await engine.close()

    def check_room(self, deadline: float) -> None:
        """Refuse what `rank` would refuse now; see `Backend.check_room`."""
        self._check_ready()
        wait = self._estimate_wait()
        longest = min(self._settings.max_wait_seconds, deadline - time.monotonic())
        if self._n_waiting >= self._settings.max_queue or (self._n_waiting and wait > longest):
            self._metrics.refused.labels("queue").inc()
            raise QueueFullError(
                f"{self._n_waiting} requests wait, some {wait:.1f} s of work, which is all that "
                f"the queue holds; try again later",
                max(wait, 1.0),
            )

    async def rank(self, job: RankJob) -> RankedItems:
        """The (1, k) answers to one job; see `Backend.rank`."""
        self.check_room(job.deadline)
        return await self._guard(self._run_job(job), job.deadline)

    async def write(self, job: TextJob) -> AsyncGenerator[TextPart]:
        """The text of one job, piece by piece; see `Backend.write`."""
        self._check_ready()
        if self._n_texts >= self._settings.max_texts:
            self._metrics.refused.labels("queue").inc()
            raise QueueFullError(
                f"{self._n_texts} texts are being written, which is all that this server does at "
                f"once; try again later",
                _TEXT_RETRY_SECONDS,
            )
        assert self._engine is not None, "it is ready"
        self._n_texts += 1
        try:
            async with aclosing(self._engine.write(job, self._ends)) as parts:
                while (part := await self._guard(_take_next(parts), job.deadline)) is not None:
                    self._metrics.text_tokens.inc(part.n_tokens)
                    yield part
        finally:
            self._n_texts -= 1

    def _check_ready(self) -> None:
        if self._state != "ready":
            raise BackendDownError(
                f"the engine takes no requests: it is {self._state}; try again later"
            )

    def _estimate_wait(self) -> float:
        return self._n_waiting * self._seconds_per_job / self._settings.batch_jobs

    async def _run_job(self, job: RankJob) -> RankedItems:
        items: Any = job.edition.recommender.engine
        assert isinstance(items, VllmItems), "this backend's editions hold no other engine"
        entered = time.monotonic()
        self._n_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._n_waiting -= 1
        try:
            if self._engine is None:  # it ended while this job waited
                raise EngineGoneError("the engine has ended")
            started = time.monotonic()
            ranked = await self._engine.rank(
                job.prompt, job.k, job.search, job.filter, job.adapter, items=items
            )
        finally:
            self._places.release()
        seconds = time.monotonic() - started
        known = self._seconds_per_job
        self._seconds_per_job = known + _RECENT * (seconds - known) if known else seconds
        job.seconds.update(queue=started - entered, search=seconds)
        return ranked

    async def _guard(self, work: Coroutine[Any, Any, _T], deadline: float) -> _T:
        """The result of work that ends with its deadline, its caller, the engine or the server."""
        task = asyncio.create_task(work)
        self._running.add(task)
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await task
        except TimeoutError:
            self._metrics.refused.labels("deadline").inc()
            raise DeadlineError(
                "the request was not answered before its deadline; try again later, or ask for less"
            ) from None
        except EngineGoneError as error:
            self._alarm.set()
            raise BackendDownError(
                "the engine ended while it worked on this request, and is started again; try again "
                "later"
            ) from error
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise BackendDownError("the server has stopped; ask another one") from None
        finally:
            self._running.discard(task)

    async def _take_engine(self) -> None:
        self._engine = await self._start_engine()
        self._started = time.monotonic()

    async def _watch(self) -> None:
        """Start another engine whenever one has ended, until too many have."""
        while self._state != "failed":
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.check_seconds):
                    await self._alarm.wait()
            self._alarm.clear()
            if self._engine is not None and self._engine.is_gone:
                await self._restart(self._engine)

    async def _restart(self, gone: AsyncVllmEngine) -> None:
        self._state, self._engine = "restarting", None
        lived = time.monotonic() - self._started
        if lived >= self._pace.stable_seconds:
            self._failures = 0
        _log.error(
            "the vLLM engine has ended after %.0f s; requests get 503 until another one is up",
            lived,
        )
        fault: GenrecError = EngineGoneError("the engine has ended")
        await gone.close()
        while self._failures < self._pace.most_failures:
            pause = self._pace.first_seconds * 2**self._failures
            await asyncio.sleep(min(pause, self._pace.longest_seconds))
            self._failures += 1
            try:
                await self._take_engine()
            except GenrecError as error:
                fault = error
                _log.error("start %d of the vLLM engine failed: %s", self._failures, error)
                continue
            self._metrics.restarts.inc()
            self._state = "ready"
            _log.warning("another vLLM engine is up; requests are taken again")
            return
        self._state = "failed"
        _log.critical(
            "the vLLM engine has failed %d times in a row (%s); restart the server once the cause "
            "is gone",
            self._failures,
            fault,
        )


async def _take_next(parts: AsyncGenerator[TextPart]) -> TextPart | None:
    return await anext(parts, None)

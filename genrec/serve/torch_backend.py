"""The model in this process as a backend: one thread runs it, jobs that wait together run together.

Owns that thread and what it runs next. Knows no HTTP; the queue's rules are `batcher`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from typing import Any, TypeVar

import numpy as np

from genrec.decode.adapters import Adapters
from genrec.decode.engine import ItemFilter
from genrec.decode.prefix_cache import PrefixStats
from genrec.decode.writer import TextPart, Writer
from genrec.errors import DataError, ModelError
from genrec.serve.backend import (
    BackendDownError,
    DeadlineError,
    Edition,
    QueueFullError,
    RankJob,
    State,
    TextJob,
)
from genrec.serve.batcher import JobQueue, QueueLimits, Ticket
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.serve.text_turns import TextTurns
from genrec.types import RankedItems

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class TorchBackend:
    """Ranks with the engine of each job's edition, on one thread that alone touches the model."""

    name = "torch"

    def __init__(
        self,
        edition: Edition,
        settings: ServeSettings,
        metrics: ServeMetrics,
        adapters: Adapters | None = None,
        writer: Writer | None = None,
    ) -> None:
        """Set the queues up; nothing runs before `start`.

        Args:
            edition: what `start` checks the engine with.
            settings: the queues' limits.
            metrics: told of queue, batches and refusals.
            adapters: over the same weights as the edition's engine.
            writer: writes texts with the same weights; None writes none.
        """
        self._edition = edition
        self._metrics = metrics
        self._adapters = adapters
        self._gather_seconds = settings.gather_seconds
        self._state: State = "starting"
        self._ranks: JobQueue[RankJob] = JobQueue(
            QueueLimits(
                settings.max_queue,
                settings.max_wait_seconds,
                settings.batch_jobs,
                settings.batch_tokens,
            )
        )
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="genrec-engine")
        self._prefixes = PrefixStats()  # as counted so far
        self._worker: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()
        self._texts = TextTurns(writer, settings.max_texts, self._bell.set) if writer else None
        metrics.watch(metrics.queued, lambda: float(len(self._ranks)))
        metrics.watch(metrics.prefix_bytes, lambda: float(self._prefixes.stored_bytes))

    @property
    def state(self) -> State:
        """Whether jobs are taken, and if not, why."""
        return self._state

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that jobs may name."""
        return self._adapters.names if self._adapters else ()

    async def start(self) -> None:
        """Check that the engine obeys its trie, and take jobs.

        Raises:
            ModelError: it gave an item that was excluded, or none.
        """
        await self._run_on_engine(probe_engine, self._edition)
        self._worker = asyncio.create_task(self._work())
        self._worker.add_done_callback(self._note_end)
        self._state = "ready"

    async def stop(self, drain_seconds: float) -> None:
        """Take no more jobs, finish those that wait for at most so long, and end."""
        self._state = "draining"
        if self._worker is not None:
            self._bell.set()
            await asyncio.wait((self._worker,), timeout=drain_seconds)
            self._worker.cancel()
        stopped = BackendDownError("the server has stopped; ask another one")
        self._ranks.fail_all(stopped)
        if self._texts is not None:
            self._texts.fail_all(stopped)
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    def check_room(self, deadline: float) -> None:
        """Refuse what `rank` would refuse now; see `Backend.check_room`."""
        self._check_ready()
        try:
            self._ranks.check_room(deadline)
        except QueueFullError:
            self._metrics.refused.labels("queue").inc()
            raise

    async def rank(self, job: RankJob) -> RankedItems:
        """The (1, k) answers to one job; see `Backend.rank`."""
        self.check_room(job.deadline)
        alone = None if job.trace is None else id(job.trace)
        key = (id(job.edition), job.adapter, job.k, job.search, job.user_vector is None, alone)
        ticket = Ticket(job, key, len(job.prompt), job.deadline)
        try:
            self._ranks.put(ticket)
            self._bell.set()
            async with asyncio.timeout(max(job.deadline - time.monotonic(), 0)):
                ranked: RankedItems = await ticket.result
                return ranked
        except (TimeoutError, DeadlineError):
            self._metrics.refused.labels("deadline").inc()
            raise DeadlineError(
                "the request was not answered before its deadline; try again later, or ask for less"
            ) from None

    async def write(self, job: TextJob) -> AsyncGenerator[TextPart]:
        """The text of one job, piece by piece; see `Backend.write`."""
        self._check_ready()
        if self._texts is None:
            raise DataError("this server writes no texts; serve a model that was trained to")
        async with aclosing(self._texts.write(job)) as parts:
            async for part in parts:
                self._metrics.text_tokens.inc(part.n_tokens)
                yield part

    def _note_end(self, worker: asyncio.Task[None]) -> None:
        """Let nobody wait for a worker that a fault has ended; it takes no job any more."""
        error = None if worker.cancelled() else worker.exception()
        if error is None:
            return
        _log.error("the engine's worker has ended; restart the server", exc_info=error)
        self._state = "failed"
        down = BackendDownError("the engine has failed; ask another server")
        self._ranks.fail_all(down)
        if self._texts is not None:
            self._texts.fail_all(down)

    def _check_ready(self) -> None:
        if self._state != "ready":
            raise BackendDownError(f"the engine takes no requests: it is {self._state}")

    async def _work(self) -> None:
        while True:
            # One token of texts between two batches: a long text holds up no ranking.
            if len(self._ranks):
                batch = self._ranks.take_batch()
                if batch:
                    await self._run_batch(batch)
            if self._texts is not None and self._texts.has_work:
                await self._run_turn(self._texts)
            elif not len(self._ranks):
                if self._state == "draining":
                    return
                self._bell.clear()
                await self._bell.wait()
                await asyncio.sleep(self._gather_seconds)

    async def _run_turn(self, texts: TextTurns) -> None:
        turn = texts.begin_turn()
        running = self._run_on_engine(texts.run, turn)
        await asyncio.wait((running,))
        error = running.exception()
        if error is not None:
            texts.fail_all(error, turn)
        else:
            texts.end_turn(turn)

    async def _run_batch(self, batch: Sequence[Ticket[RankJob]]) -> None:
        started = time.monotonic()
        running = self._run_on_engine(self._rank_together, [ticket.job for ticket in batch])
        await asyncio.wait((running,))
        error = running.exception()
        if error is not None:
            if len(batch) > 1:  # one job's fault is not the others'
                for ticket in batch:
                    await self._run_batch([ticket])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        seconds = time.monotonic() - started
        self._count_prefixes(batch[0].job.edition)
        self._metrics.batch_jobs.observe(len(batch))
        self._ranks.note_batch(len(batch), seconds)
        for row, ticket in enumerate(batch):
            if ticket.result.done():  # its client left, or its deadline passed, while it ran
                continue
            ticket.job.seconds.update(queue=started - ticket.entered, search=seconds)
            ticket.result.set_result(_take_row(running.result(), row))

    def _count_prefixes(self, edition: Edition) -> None:
        stats = getattr(edition.recommender.engine, "prefix_stats", None)
        if stats is not None:
            self._metrics.prefix_hits.inc(max(stats.hits - self._prefixes.hits, 0))
            self._metrics.prefix_misses.inc(max(stats.misses - self._prefixes.misses, 0))
            self._metrics.prefix_saved.inc(max(stats.saved_tokens - self._prefixes.saved_tokens, 0))
            self._prefixes = stats

    def _rank_together(self, jobs: Sequence[RankJob]) -> RankedItems:
        first = jobs[0]
        # Only a model in memory takes embeddings of users; others are not asked with any.
        rank: Any = first.edition.recommender.engine.rank_prompts
        vectors = [job.user_vector for job in jobs if job.user_vector is not None]
        shown: dict[str, Any] = {"user_vectors": np.stack(vectors)} if vectors else {}
        if first.trace is not None:
            shown["trace"] = first.trace
        with self._adapters.use(first.adapter) if self._adapters else nullcontext():
            ranked: RankedItems = rank(
                [job.prompt for job in jobs],
                first.k,
                first.search,
                filters=[job.filter for job in jobs],
                **shown,
            )
        return ranked

    def _run_on_engine(self, function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._engine_thread, function, *args)


def probe_engine(edition: Edition) -> None:
    """Ask an engine for its best item, forbid that item, and ask again.

    Raises:
        ModelError: the answer is no item, or the one that was forbidden.
    """
    engine, prompt = edition.recommender.engine, [0]  # any prompt will do
    best = int(engine.rank_prompts([prompt], 1).item_index[0, 0])
    wrong = not 0 <= best < engine.n_items
    if engine.n_items > 1 and not wrong:
        without = [ItemFilter(excluded=np.array([best]))]
        second = int(engine.rank_prompts([prompt], 1, filters=without).item_index[0, 0])
        wrong = second == best or not 0 <= second < engine.n_items
    if wrong:
        raise ModelError(
            "the engine answered with an item that does not exist or was forbidden, so the server "
            "does not start; this is a fault of genrec's: please report it"
        )


def _take_row(ranked: RankedItems, row: int) -> RankedItems:
    """One user's answers out of a batch's."""
    one = slice(row, row + 1)
    return RankedItems(
        ranked.item_index[one],
        ranked.scores[one],
        ranked.certified[one],
        None if ranked.bound is None else ranked.bound[one],
        None if ranked.evaluations is None else ranked.evaluations[one],
    )

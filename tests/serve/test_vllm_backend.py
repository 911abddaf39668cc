"""A vLLM as a backend, over a stand-in: places, deadlines, draining, and engines that end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from genrec.decode.vllm_async import AsyncVllmEngine, EngineGoneError
from genrec.decode.vllm_items import VllmItems
from genrec.decode.writer import TextPart
from genrec.errors import ModelError
from genrec.recommender import Recommender
from genrec.serve.backend import (
    BackendDownError,
    DeadlineError,
    Edition,
    QueueFullError,
    RankJob,
    TextJob,
)
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.serve.vllm_backend import RestartPace, VllmBackend
from genrec.types import RankedItems
from tests.serve.asgi import wait_for

QUICK = RestartPace(check_seconds=0.01, first_seconds=0.01, longest_seconds=0.02, most_failures=3)


class FakeEngine:
    """Answers what it is asked, when its gate is open, until it is killed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_gone = False
        self.is_closed = False
        self.inside = 0
        self.asked: list[Any] = []

    async def rank(self, prompt: Any, k: int, *rest: Any, items: VllmItems) -> RankedItems:
        self.asked.append((tuple(prompt), k, *rest, items))
        await self._pass()
        scores = -np.arange(k, dtype=np.float32)[None]
        return RankedItems(np.arange(k)[None], scores, np.ones(1, dtype=np.bool_))

    async def write(self, request: TextJob, ends: Any) -> AsyncGenerator[TextPart]:
        self.asked.append((request, ends))
        for number in range(1, request.max_tokens + 1):
            await self._pass()
            yield TextPart(f"{number} ", 1, "length" if number == request.max_tokens else None)

    async def _pass(self) -> None:
        self.inside += 1
        try:
            while not self.is_gone and not self.gate.is_set():
                await asyncio.sleep(0.002)
            if self.is_gone:
                raise EngineGoneError("the process has ended")
            await asyncio.sleep(0.001)
        finally:
            self.inside -= 1

    async def close(self) -> None:
        self.is_closed = True


class Bench:
    """A backend, the engines that it started, and jobs for it."""

    def __init__(self, pace: RestartPace = QUICK, **settings: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.faults: list[Exception] = []
        self.metrics = ServeMetrics()
        items = object.__new__(VllmItems)
        self.edition = Edition(1, cast(Recommender, SimpleNamespace(engine=items)))
        self.backend = VllmBackend(
            self.start, ServeSettings(**settings), self.metrics, ("books",), frozenset({7}), pace
        )

    async def start(self) -> AsyncVllmEngine:
        await asyncio.sleep(0.005)
        if self.faults:
            raise self.faults.pop(0)
        self.engines.append(FakeEngine())
        return cast(AsyncVllmEngine, self.engines[-1])

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def rank(self, **job: Any) -> asyncio.Task[RankedItems]:
        given = {"edition": self.edition, "prompt": (1, 2), "k": 3, **job}
        return asyncio.create_task(self.backend.rank(RankJob(**given)))

    def write(self, max_tokens: int = 5, **job: Any) -> asyncio.Task[list[TextPart]]:
        async def read() -> list[TextPart]:
            given = TextJob((1, 2), max_tokens, **job)
            return [part async for part in self.backend.write(given)]

        return asyncio.create_task(read())

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def run(test: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    async def start() -> None:
        bench = Bench(**settings)
        assert bench.backend.state == "starting" and bench.backend.name == "vllm"
        with pytest.raises(BackendDownError, match="it is starting"):
            await bench.rank()
        await bench.backend.start()
        assert bench.backend.state == "ready" and bench.backend.adapters == ("books",)
        try:
            async with asyncio.timeout(10):
                await test(bench)
        finally:
            await bench.backend.stop(1)
        assert all(engine.is_closed for engine in bench.engines)

    asyncio.run(start())


def test_jobs_go_into_the_engine_together_as_many_as_have_a_place() -> None:
    async def test(bench: Bench) -> None:
        bench.engine.gate.clear()
        jobs = [bench.rank(k=k, adapter="books") for k in range(1, 8)]
        await wait_for(lambda: bench.engine.inside == 4)
        assert bench.count("genrec_queue_depth") == 3
        bench.engine.gate.set()
        answers = await asyncio.gather(*jobs)
        assert [one.item_index.shape for one in answers] == [(1, k) for k in range(1, 8)]
        assert bench.count("genrec_queue_depth") == 0
        items = bench.edition.recommender.engine
        assert all(one[4] == "books" and one[5] is items for one in bench.engine.asked)

    run(test, batch_jobs=4)


def test_a_full_queue() -> None:
    async def test(bench: Bench) -> None:
        await bench.rank()
        bench.engine.gate.clear()
        jobs = [bench.rank() for _ in range(3)]
        await wait_for(lambda: bench.count("genrec_queue_depth") == 2)
        with pytest.raises(QueueFullError, match="2 requests wait") as error:
            await bench.rank()
        assert error.value.retry_seconds >= 1
        assert bench.count("genrec_jobs_refused_total", reason="queue") == 1
        bench.engine.gate.set()
        await asyncio.gather(*jobs)

    run(test, batch_jobs=1, max_queue=2)


def test_a_job_that_would_wait_too_long_is_refused_at_once() -> None:
    async def test(bench: Bench) -> None:
        bench.backend._seconds_per_job = 10.0
        bench.engine.gate.clear()
        jobs = [bench.rank() for _ in range(2)]
        await wait_for(lambda: bench.count("genrec_queue_depth") == 1)
        with pytest.raises(QueueFullError, match=r"some 10\.0 s of work"):
            await bench.rank(deadline=time.monotonic() + 5)
        bench.engine.gate.set()
        await asyncio.gather(*jobs)

    run(test, batch_jobs=1)


def test_a_job_tells_how_long_it_took() -> None:
    async def test(bench: Bench) -> None:
        seconds: dict[str, float] = {}
        await bench.rank(seconds=seconds)
        assert seconds.keys() == {"queue", "search"} and seconds["search"] > 0

    run(test)


def test_deadlines_and_clients_that_leave_free_their_places() -> None:
    async def test(bench: Bench) -> None:
        bench.engine.gate.clear()
        late = bench.rank(deadline=time.monotonic() + 0.02)
        waiting = bench.rank(deadline=time.monotonic() + 0.02)
        text = bench.write(deadline=time.monotonic() + 0.02)
        for job in (late, waiting, text):
            with pytest.raises(DeadlineError, match="before its deadline"):
                await job
        assert bench.count("genrec_jobs_refused_total", reason="deadline") == 3
        gone = bench.rank()
        await wait_for(lambda: bench.engine.inside == 1)
        gone.cancel()
        await asyncio.wait((gone,))
        assert gone.cancelled() and bench.engine.inside == 0
        bench.engine.gate.set()
        await bench.rank()

    run(test, batch_jobs=1)


def test_texts_come_in_pieces_and_end_where_the_reader_leaves() -> None:
    async def test(bench: Bench) -> None:
        parts = await bench.write(3)
        assert "".join(part.text for part in parts) == "1 2 3 "
        assert bench.engine.asked[-1][1] == {7}
        assert bench.count("genrec_text_tokens_total") == 3
        reading = bench.backend.write(TextJob((1,), 1000))
        assert (await anext(reading)).text == "1 "
        with pytest.raises(QueueFullError, match="1 texts are being written"):
            await bench.write()
        await reading.aclose()
        assert bench.engine.inside == 0
        await bench.write(1)

    run(test, max_texts=1)


def test_a_killed_engine_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        killed = bench.engine
        killed.gate.clear()
        jobs = [bench.rank() for _ in range(4)]
        text = bench.write()
        await wait_for(lambda: killed.inside == 3)
        killed.is_gone = True
        found = await asyncio.gather(*jobs, text, return_exceptions=True)
        assert {type(fault) for fault in found} == {BackendDownError}
        assert bench.backend.state == "restarting" and killed.is_closed
        with pytest.raises(BackendDownError, match="it is restarting"):
            await bench.rank()
        with pytest.raises(BackendDownError, match="it is restarting"):
            await bench.write()
        await wait_for(lambda: bench.backend.state == "ready")
        assert len(bench.engines) == 2
        assert (await bench.rank()).item_index.shape == (1, 3)
        assert bench.count("genrec_engine_restarts_total") == 1

    with caplog.at_level(logging.WARNING, "genrec.serve.vllm_backend"):
        run(test, batch_jobs=2, pace=RestartPace(0.01, 0.2))
    assert "has ended after 0 s; requests get 503" in caplog.text
    assert "another vLLM engine is up" in caplog.text


def test_an_engine_that_dies_in_silence_is_noticed() -> None:
    async def test(bench: Bench) -> None:
        bench.engine.is_gone = True
        await wait_for(lambda: len(bench.engines) == 2 and bench.backend.state == "ready")

    run(test)


def test_after_too_many_failures_nothing_is_tried_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(bench: Bench) -> None:
        bench.faults = [ModelError("no memory")] * 5
        bench.engine.is_gone = True
        await wait_for(lambda: bench.backend.state == "failed")
        assert len(bench.faults) == 2, "three were tried"
        with pytest.raises(BackendDownError, match="it is failed"):
            await bench.rank()

    run(test)
    assert "start 3 of the vLLM engine failed: no memory" in caplog.text
    assert "has failed 3 times in a row (no memory)" in caplog.text


@pytest.mark.parametrize("stable_seconds", [0.0, 100.0])
def test_engines_that_start_and_die_are_failures_unless_they_lived(stable_seconds: float) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(5):
            await wait_for(lambda: bench.backend.state in {"ready", "failed"})
            bench.engine.is_gone = True
            await wait_for(lambda: bench.backend.state != "ready")
        await wait_for(lambda: bench.backend.state in {"ready", "failed"})
        assert bench.backend.state == ("ready" if stable_seconds == 0 else "failed")
        assert len(bench.engines) == (6 if stable_seconds == 0 else 4)

    run(test, pace=RestartPace(0.005, 0.001, 0.01, 3, stable_seconds))


def test_an_engine_that_does_not_start_at_all() -> None:
    async def start() -> None:
        bench = Bench()
        bench.faults = [ModelError("forbidden")]
        with pytest.raises(ModelError, match="forbidden"):
            await bench.backend.start()
        await bench.backend.stop(0)

    asyncio.run(start())


def test_stopping_lets_jobs_finish_and_then_ends_them() -> None:
    async def drain() -> None:
        bench = Bench()
        await bench.backend.start()
        bench.engine.gate.clear()
        jobs, text = [bench.rank() for _ in range(3)], bench.write(3)
        await wait_for(lambda: bench.engine.inside == 4)
        stopping = asyncio.create_task(bench.backend.stop(5))
        await asyncio.sleep(0.01)
        assert bench.backend.state == "draining"
        with pytest.raises(BackendDownError, match="it is draining"):
            await bench.rank()
        bench.engine.gate.set()
        await stopping
        assert len(await text) == 3 and len(await asyncio.gather(*jobs)) == 3

    async def cut_off() -> None:
        bench = Bench()
        await bench.backend.start()
        bench.engine.gate.clear()
        jobs: list[asyncio.Task[Any]] = [bench.rank(), bench.write()]
        await wait_for(lambda: bench.engine.inside == 2)
        await bench.backend.stop(0.02)
        for job in jobs:
            with pytest.raises(BackendDownError, match="the server has stopped"):
                await job
        assert bench.engine.is_closed and bench.engine.inside == 0

    asyncio.run(drain())
    asyncio.run(cut_off())

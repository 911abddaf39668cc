"""The model in this process under load: together, in turn, in time, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.writer import Writer
from genrec.errors import DataError
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
from genrec.serve.torch_backend import TorchBackend
from tests.serve.asgi import wait_for
from tests.serve.held import HeldEngine, hold_engine


class Bench:
    """A backend over a held engine, and jobs for it."""

    def __init__(self, recommender: Recommender, **settings: Any) -> None:
        other, self.held = hold_engine(recommender)
        self.edition = Edition(1, other)
        self.metrics = ServeMetrics()
        self.writer = Writer(self.held.engine._model, recommender.tokenizer)
        self.backend = TorchBackend(
            self.edition, ServeSettings(**settings), self.metrics, writer=self.writer
        )
        self.prompts = recommender.encode_prompts([np.array([i]) for i in range(20)], [""] * 20)

    def rank(self, row: int = 0, **job: Any) -> asyncio.Task[Any]:
        given = {"edition": self.edition, "prompt": tuple(self.prompts[row]), "k": 3, **job}
        return asyncio.create_task(self.backend.rank(RankJob(**given)))

    def write(self, max_tokens: int = 5, **job: Any) -> asyncio.Task[list[Any]]:
        """The parts of a text after the first prompt."""
        given = {"prompt": tuple(self.prompts[0]), "max_tokens": max_tokens, **job}

        async def read() -> list[Any]:
            return [part async for part in self.backend.write(TextJob(**given))]

        return asyncio.create_task(read())

    async def occupy(self) -> asyncio.Task[Any]:
        """A job that runs until the gate opens."""
        self.held.batches.clear()
        self.held.gate.clear()
        running = self.rank()
        await wait_for(lambda: self.held.batches)
        return running

    def count(self, name: str) -> float:
        found = self.metrics.registry.get_sample_value(name)
        return found or 0.0


def run(
    recommender: Recommender, test: Callable[[Bench, HeldEngine], Awaitable[None]], **settings: Any
) -> None:
    async def start() -> None:
        bench = Bench(recommender, **settings)
        assert bench.backend.state == "starting"
        await bench.backend.start()
        assert bench.backend.state == "ready"
        try:
            async with asyncio.timeout(20):
                await test(bench, bench.held)
        finally:
            bench.held.gate.set()
            await bench.backend.stop(5)

    asyncio.run(start())


def test_jobs_that_wait_run_together_and_answer_as_alone(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        waiting = [bench.rank(row) for row in range(1, 9)]
        await wait_for(lambda: bench.count("genrec_queue_depth") == 8)
        held.gate.set()
        await running
        together = await asyncio.gather(*waiting)
        assert held.batches == [1, 8]
        for row, answer in enumerate(together, start=1):
            alone = await bench.rank(row)
            np.testing.assert_array_equal(alone.item_index, answer.item_index)
            np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)
            assert answer.item_index.shape == (1, 3)

    run(recommender, test)


def test_unlike_jobs_run_in_the_order_in_which_they_came(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        kinds: list[dict[str, Any]] = [
            {"k": 2}, {"k": 4}, {"k": 2}, {"search": Search(normalize="level")}
        ]  # fmt: skip
        waiting = [bench.rank(**kind) for kind in kinds]
        await wait_for(lambda: bench.count("genrec_queue_depth") == 4)
        held.gate.set()
        await asyncio.gather(running, *waiting)
        assert held.batches == [1, 2, 1, 1]

    run(recommender, test)


def test_one_jobs_fault_is_not_the_others(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        wrong = bench.rank(prompt=(10**6,))
        right = bench.rank(1)
        await wait_for(lambda: bench.count("genrec_queue_depth") == 2)
        held.gate.set()
        await running
        with pytest.raises(DataError, match="holds token 1000000"):
            await wrong
        assert (await right).item_index.shape == (1, 3)

    run(recommender, test)


def test_a_bug_reaches_its_waiter_and_the_engine_goes_on(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        held.fault = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            await bench.rank()
        held.fault = None
        assert (await bench.rank()).scores.shape == (1, 3)

    run(recommender, test)


def test_a_worker_that_ended_is_seen_and_keeps_nobody_waiting(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()

        def fail(n_jobs: int, seconds: float) -> None:
            raise RuntimeError("no such batch")

        bench.backend._ranks.note_batch = fail  # type: ignore[method-assign]
        waiting = bench.rank(1, k=2)
        await wait_for(lambda: bench.count("genrec_queue_depth") == 1)
        held.gate.set()
        with pytest.raises(BackendDownError, match="the engine has failed"):
            await waiting
        assert bench.backend.state == "failed"
        with pytest.raises(BackendDownError, match="it is failed"):
            await bench.rank()
        running.cancel()

    run(recommender, test)


def test_a_full_queue_says_when_to_come_again(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        waiting = [bench.rank() for _ in range(2)]
        await wait_for(lambda: bench.count("genrec_queue_depth") == 2)
        with pytest.raises(QueueFullError, match="2 requests wait"):
            await bench.rank()
        held.gate.set()
        await asyncio.gather(running, *waiting)
        refused = bench.metrics.registry.get_sample_value(
            "genrec_jobs_refused_total", {"reason": "queue"}
        )
        assert refused == 1

    run(recommender, test, max_queue=2)


def test_a_deadline_passes_while_a_job_waits_or_runs(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        await bench.occupy()
        with pytest.raises(DeadlineError, match="not answered before its deadline"):
            await bench.rank(deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineError):
            await bench.rank(deadline=time.monotonic() - 1)
        assert bench.count("genrec_queue_depth") == 0
        held.gate.set()
        assert (await bench.rank()).item_index.shape == (1, 3)
        assert held.batches == [1, 1]

    run(recommender, test)


def test_a_job_that_is_cancelled_is_not_run(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        unwanted = bench.rank()
        await wait_for(lambda: bench.count("genrec_queue_depth") == 1)
        unwanted.cancel()
        await wait_for(lambda: bench.count("genrec_queue_depth") == 0)
        running.cancel()  # what runs is not stopped, and nobody gets it
        held.gate.set()
        await bench.rank()
        assert held.batches == [1, 1]

    run(recommender, test)


def test_filters_and_gathering(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        best = (await bench.rank(k=1)).item_index[0, 0]
        held.batches.clear()
        without = ItemFilter(excluded=np.array([best]))
        first, second = await asyncio.gather(bench.rank(k=1), bench.rank(k=1, filter=without))
        assert first.item_index[0, 0] == best
        assert second.item_index[0, 0] != best
        assert held.batches == [2]

    run(recommender, test, gather_seconds=0.02)


def test_stopping_finishes_what_waits_and_takes_no_more(recommender: Recommender) -> None:
    async def test() -> None:
        bench = Bench(recommender)
        with pytest.raises(BackendDownError, match="it is starting"):
            await bench.rank()
        await bench.backend.start()
        running = await bench.occupy()
        waiting = bench.rank(1)
        await wait_for(lambda: bench.count("genrec_queue_depth") == 1)
        stop = asyncio.create_task(bench.backend.stop(5))
        await wait_for(lambda: bench.backend.state == "draining")
        with pytest.raises(BackendDownError, match="draining"):
            await bench.rank()
        bench.held.gate.set()
        await stop
        assert (await running).item_index.shape == (await waiting).item_index.shape

    asyncio.run(test())


def test_stopping_does_not_wait_for_ever(recommender: Recommender) -> None:
    async def test() -> None:
        bench = Bench(recommender)
        await bench.backend.start()
        running = await bench.occupy()
        waiting = bench.rank(1)
        await wait_for(lambda: bench.count("genrec_queue_depth") == 1)
        await bench.backend.stop(0.05)
        with pytest.raises(BackendDownError, match="has stopped"):
            await waiting
        bench.held.gate.set()
        running.cancel()

    asyncio.run(test())


def test_stopping_before_starting_is_nothing(recommender: Recommender) -> None:
    asyncio.run(Bench(recommender).backend.stop(1))


def count_tokens(parts: list[Any]) -> int:
    return sum(part.n_tokens for part in parts)


def test_texts_are_written_between_rankings(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        first, second = bench.write(60), bench.write(3)
        ranks = [await bench.rank(row) for row in range(3)]
        assert not first.done()  # three rankings went between its tokens
        assert len(ranks) == 3
        long, short = await asyncio.gather(first, second)
        assert long[-1].finish is not None
        assert count_tokens(short) <= 3
        assert bench.count("genrec_text_tokens_total") == count_tokens(long) + count_tokens(short)
        assert bench.writer.is_idle

    run(recommender, test)


def test_a_text_that_cannot_be_written_fails_alone(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        wrong, right = bench.write(prompt=()), bench.write()
        with pytest.raises(DataError, match="the prompt is empty"):
            await wrong
        assert (await right)[-1].finish is not None

    run(recommender, test)


def test_a_reader_that_leaves_ends_its_text(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        parts = bench.backend.write(TextJob(tuple(bench.prompts[0]), max_tokens=100))
        await anext(parts)
        await parts.aclose()
        waits = bench.write(100)
        await asyncio.sleep(0)
        waits.cancel()
        await wait_for(lambda: bench.writer.is_idle)
        assert (await bench.write(2))[-1].finish is not None

    run(recommender, test)


def test_texts_have_places_and_deadlines(recommender: Recommender) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        running = await bench.occupy()
        waits = bench.write()
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="1 texts are being written"):
            await bench.write()
        with pytest.raises(DeadlineError, match="not written before its deadline"):
            waits.cancel()
            await asyncio.sleep(0)
            await bench.write(deadline=time.monotonic() + 0.02)
        held.gate.set()
        await running

    run(recommender, test, max_texts=1)


def test_a_writers_fault_ends_its_texts_and_no_more(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench, held: HeldEngine) -> None:
        with monkeypatch.context() as patch:

            def fail() -> None:
                raise RuntimeError("out of memory")

            patch.setattr(bench.writer, "step", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                await bench.write()
        assert (await bench.write())[-1].finish is not None

    run(recommender, test)


def test_a_text_that_was_left_while_it_was_begun_is_cancelled(recommender: Recommender) -> None:
    async def test() -> None:
        bench = Bench(recommender)
        turns = bench.backend._texts
        assert turns is not None
        parts = turns.write(TextJob(tuple(bench.prompts[0]), max_tokens=9))
        reading = asyncio.create_task(anext(parts))
        await asyncio.sleep(0)
        turn = turns.begin_turn()
        assert len(turns) == 1
        reading.cancel()
        await asyncio.wait((reading,))
        turns.run(turn)
        turns.end_turn(turn)
        assert (len(turns), turns.has_work) == (0, True)
        turns.run(turns.begin_turn())
        assert bench.writer.is_idle

    asyncio.run(test())


def test_without_a_writer_nothing_is_written(recommender: Recommender) -> None:
    async def test() -> None:
        edition = Edition(1, recommender)
        backend = TorchBackend(edition, ServeSettings(), ServeMetrics())
        await backend.start()
        with pytest.raises(DataError, match="writes no texts"):
            await anext(backend.write(TextJob((0,))))
        await backend.stop(1)

    asyncio.run(test())

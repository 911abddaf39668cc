"""Jobs that wait for one engine: first come first served, like ones together, never too many.

Owns the queue before the engine: its bound, its groups, what happens to jobs that are late or no
longer wanted, and how long a wait will be. It lives on one event loop. Knows no job's meaning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genrec.serve.backend import DeadlineError, QueueFullError

J = TypeVar("J")
_RECENT = 0.2
"""How much the latest batch counts in the time that a job is thought to take."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[J]):
    """A job's place in the queue.

    Attributes:
        job: what to run.
        key: jobs of one key may run together.
        cost: of the job, in whatever the queue's `batch_cost` counts.
        deadline: `time.monotonic()` after which it is not worth running.
        result: what the waiter gets; cancelled when it leaves.
        entered: when it came.
    """

    job: J
    key: Hashable
    cost: int
    deadline: float
    result: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    entered: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How long a queue may be, and how much is taken out of it together."""

    max_jobs: int
    max_wait_seconds: float
    batch_jobs: int
    batch_cost: int


class JobQueue(Generic[J]):
    """A bounded queue for one worker."""

    def __init__(self, limits: QueueLimits) -> None:
        """An empty queue with these bounds."""
        self._limits = limits
        # By a running number: a dict keeps order, and lets a cancelled job leave from the middle.
        self._waiting: dict[int, Ticket[J]] = {}
        self._number = 0
        self._seconds_per_job = 0.0
        self._runs_until = 0.0

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def put(self, ticket: Ticket[J]) -> None:
        """Take a job in; it leaves by itself when its result is cancelled.

        Raises:
            QueueFullError: there is no place, or it would wait too long.
        """
        self.check_room(ticket.deadline)
        number = self._number
        self._number += 1
        self._waiting[number] = ticket
        ticket.result.add_done_callback(lambda _: self._waiting.pop(number, None))

    def check_room(self, deadline: float) -> None:
        """Refuse a job that `put` would refuse, before it is made.

        Args:
            deadline: the job's.

        Raises:
            QueueFullError: as for `put`.
        """
        n_waiting, wait = len(self._waiting), self.estimate_wait()
        if n_waiting >= self._limits.max_jobs:
            raise QueueFullError(
                f"{n_waiting} requests wait, which is all that the queue holds; try again later",
                wait,
            )
        longest = min(self._limits.max_wait_seconds, deadline - time.monotonic())
        if n_waiting and wait > longest:
            raise QueueFullError(
                f"{n_waiting} requests wait, some {wait:.1f} s of work, which is longer than this "
                f"one can; try again later",
                wait,
            )

    def take_batch(self) -> list[Ticket[J]]:
        """The job that has waited longest and those that may run with it; none if none wait.

        Jobs that are late get their error here, and do not run.
        """
        now = time.monotonic()
        batch: list[Ticket[J]] = []
        cost = 0
        for number, ticket in list(self._waiting.items()):
            if ticket.result.done():  # its callback, which takes it out, has yet to run
                del self._waiting[number]
                continue
            if ticket.deadline < now:
                del self._waiting[number]
                ticket.result.set_exception(
                    DeadlineError("the request waited until its deadline; try again later")
                )
                continue
            if batch and ticket.key != batch[0].key:
                continue
            cost += ticket.cost
            if batch and (cost > self._limits.batch_cost or len(batch) == self._limits.batch_jobs):
                break
            del self._waiting[number]
            batch.append(ticket)
        self._runs_until = now + self._seconds_per_job * len(batch)
        return batch

    def note_batch(self, n_jobs: int, seconds: float) -> None:
        """Learn from a batch that has run how long jobs take."""
        each, known = seconds / n_jobs, self._seconds_per_job
        self._seconds_per_job = each if known == 0 else known + _RECENT * (each - known)
        self._runs_until = 0.0

    def estimate_wait(self) -> float:
        """In how many seconds a job that came now would begin to run."""
        rest = max(self._runs_until - time.monotonic(), 0.0)
        return rest + len(self._waiting) * self._seconds_per_job

    def fail_all(self, error: Exception) -> None:
        """Give all that wait an error."""
        for ticket in list(self._waiting.values()):
            if not ticket.result.done():
                ticket.result.set_exception(error)
        self._waiting.clear()

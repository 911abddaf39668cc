"""What answers requests: a model in this process, or a vLLM engine, behind one Protocol.

Owns the words in which the server asks and the faults that a backend may answer with. Knows no
HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import PLAIN, ItemFilter, Search
from genrec.decode.trace import SearchTrace
from genrec.decode.writer import TextPart
from genrec.errors import GenrecError
from genrec.recommender import Recommender
from genrec.types import FloatArray, RankedItems

State = Literal["starting", "ready", "restarting", "draining", "failed"]


class QueueFullError(GenrecError):
    """More requests wait than the queue holds; try again after `retry_seconds`."""

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        """Say when there should be room again."""
        super().__init__(message)
        self.retry_seconds = retry_seconds


class DeadlineError(GenrecError):
    """A request was not answered before its deadline."""


class BackendDownError(GenrecError):
    """The engine is not running: it starts, restarts, or has failed."""


@dataclass(frozen=True, slots=True, eq=False)
class Edition:
    """One version of the catalogue with the recommender over it; never changes.

    A request takes the current one once, and finishes on it whatever is swapped in meanwhile.

    Attributes:
        version: rises by one with each change.
        recommender: its engine holds this version's trie.
        available: mask over item_index of items that can be had; None when all can.
    """

    version: int
    recommender: Recommender
    available: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RankJob:
    """One user's ranking.

    Attributes:
        edition: what to rank.
        prompt: token ids.
        k: answers; `filter` leaves at least as many.
        search: how.
        filter: which items.
        adapter: by name; None is the model as trained.
        user_vector: the user's embedding, for a model with soft user tokens.
        deadline: `time.monotonic()` seconds by which the answer is wanted.
        trace: records the search, where the engine can; such a job runs alone.
        seconds: written by the backend, where it knows: how long the job was in each stage
            (`queue`, `search`).
    """

    edition: Edition
    prompt: tuple[int, ...]
    k: int
    search: Search = PLAIN
    filter: ItemFilter = field(default_factory=ItemFilter)
    adapter: str | None = None
    user_vector: FloatArray | None = None
    deadline: float = float("inf")
    trace: SearchTrace | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextJob:
    """One text to write.

    Attributes:
        prompt: token ids.
        max_tokens: at most so many are written.
        temperature: 0 takes the likeliest token each time.
        top_p: the smallest set of tokens with this much probability is drawn from.
        seed: of the draw; None draws anew each time.
        stop: texts before which writing ends.
        adapter: by name; None is the model as trained.
        deadline: as for `RankJob`.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: str | None = None
    deadline: float = float("inf")


async def wait_for_room(full: QueueFullError, deadline: float, longest_seconds: float) -> None:
    """Wait until a full queue should have room, for a caller that can be held back.

    Args:
        full: what the queue said.
        deadline: `time.monotonic()` by which the answer is wanted.
        longest_seconds: to wait at most, whatever the queue says.

    Raises:
        QueueFullError: `full`, where the deadline comes before.
    """
    pause = min(full.retry_seconds, longest_seconds)
    if time.monotonic() + pause > deadline:
        raise full
    await asyncio.sleep(pause)


class Backend(Protocol):
    """Runs jobs; every method but `start` may be called from many tasks at once."""

    @property
    def name(self) -> str:
        """What runs the model: `torch`, `vllm`."""
        ...

    @property
    def state(self) -> State:
        """Whether jobs are taken, and if not, why."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that jobs may name."""
        ...

    async def start(self) -> None:
        """Bring the engine up, and check that it gives no sequence that the trie forbids.

        Raises:
            ModelError: it does.
        """
        ...

    async def stop(self, drain_seconds: float) -> None:
        """Take no more jobs, finish those that are taken for at most so long, and end."""
        ...

    def check_room(self, deadline: float) -> None:
        """Refuse what `rank` would refuse now, so that no work is put into a job in vain.

        Args:
            deadline: the job's.

        Raises:
            QueueFullError: no place to wait.
            BackendDownError: no engine runs.
        """
        ...

    async def rank(self, job: RankJob) -> RankedItems:
        """The (1, k) answers to one job; a cancelled call gives its place up.

        Raises:
            QueueFullError: no place to wait.
            DeadlineError: the deadline passed.
            BackendDownError: no engine runs.
        """
        ...

    def write(self, job: TextJob) -> AsyncGenerator[TextPart]:
        """The text of one job, piece by piece; raises as `rank` does. Closing it ends the job."""
        ...

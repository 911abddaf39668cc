"""Texts that are being written, seen from the event loop: who waits for which, what comes next.

Owns the places of texts and what the engine's thread is told at each turn. Knows no model; the
writing itself is `decode.writer`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from genrec.decode.writer import TextPart, Writer
from genrec.errors import GenrecError
from genrec.serve.backend import DeadlineError, QueueFullError, TextJob

_RETRY_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Place:
    """One text's place.

    Attributes:
        job: what to write.
        parts: what was written, or the error that ended it, as they come.
        number: the writer's; None until its thread has taken the job.
        is_left: nobody waits any more.
    """

    job: TextJob
    parts: asyncio.Queue[TextPart | BaseException] = field(default_factory=asyncio.Queue)
    number: int | None = None
    is_left: bool = False


@dataclass(slots=True)
class Turn:
    """What one turn of the engine's thread takes and gives.

    Attributes:
        places: of texts to begin.
        cancelled: numbers of texts that nobody waits for.
        taken: for each of `places` its number, or why it was not taken.
        parts: what was written, by number.
    """

    places: Sequence[Place]
    cancelled: Sequence[int]
    taken: list[int | GenrecError] = field(default_factory=list)
    parts: list[tuple[int, TextPart]] = field(default_factory=list)


class TextTurns:
    """The texts of one writer, one turn a step."""

    def __init__(self, writer: Writer, max_texts: int, wake: Callable[[], None]) -> None:
        """No text yet.

        Args:
            writer: touched in `run` only.
            max_texts: how many may be written or wait at once.
            wake: called when there is something to do.
        """
        self._writer = writer
        self._max_texts = max_texts
        self._wake = wake
        self._waiting: list[Place] = []
        self._active: dict[int, Place] = {}
        self._cancelled: list[int] = []
        self._n_taken = 0  # by the turn that runs

    def __len__(self) -> int:
        """How many texts are written or wait."""
        return len(self._waiting) + self._n_taken + len(self._active)

    @property
    def has_work(self) -> bool:
        """Whether a turn has anything to do."""
        return bool(self._waiting or self._active or self._cancelled)

    async def write(self, job: TextJob) -> AsyncGenerator[TextPart]:
        """The parts of a text; a reader that leaves gives its place up.

        Raises:
            QueueFullError: no place.
            DeadlineError: the deadline passed before the end.
        """
        if len(self) >= self._max_texts:
            raise QueueFullError(
                f"{len(self)} texts are being written, which is all that this server does at once; "
                f"try again later",
                _RETRY_SECONDS,
            )
        place = Place(job)
        self._waiting.append(place)
        self._wake()
        try:
            finish = None
            while finish is None:
                part = await _take_part(place)
                finish = part.finish
                yield part
        finally:
            self._leave(place)

    def begin_turn(self) -> Turn:
        """What the engine's thread is to do next."""
        turn = Turn(self._waiting, self._cancelled)
        self._waiting, self._cancelled, self._n_taken = [], [], len(turn.places)
        return turn

    def run(self, turn: Turn) -> None:
        """Do a turn; on the engine's thread."""
        for number in turn.cancelled:
            self._writer.cancel(number)
        for place in turn.places:
            try:
                turn.taken.append(self._writer.add(place.job))
            except GenrecError as error:
                turn.taken.append(error)
        turn.parts = self._writer.step()

    def end_turn(self, turn: Turn) -> None:
        """Hand out what a turn gave."""
        self._n_taken = 0
        for place, taken in zip(turn.places, turn.taken, strict=True):
            if isinstance(taken, GenrecError):
                place.parts.put_nowait(taken)
            elif place.is_left:
                self._cancelled.append(taken)
            else:
                place.number = taken
                self._active[taken] = place
        for number, part in turn.parts:
            if number in self._active:
                self._active[number].parts.put_nowait(part)
                if part.finish is not None:
                    del self._active[number]

    def fail_all(self, error: BaseException, turn: Turn | None = None) -> None:
        """End all texts, those of a turn that failed too, with an error."""
        self._n_taken = 0
        taken = turn.places if turn else ()
        for place in (*taken, *self._waiting, *self._active.values()):
            place.parts.put_nowait(error)
        self._writer.clear()
        self._waiting, self._active, self._cancelled = [], {}, []

    def _leave(self, place: Place) -> None:
        place.is_left = True
        if place in self._waiting:
            self._waiting.remove(place)
        if place.number is not None and self._active.pop(place.number, None) is not None:
            self._cancelled.append(place.number)
            self._wake()


async def _take_part(place: Place) -> TextPart:
    try:
        async with asyncio.timeout(max(place.job.deadline - time.monotonic(), 0)):
            part = await place.parts.get()
    except TimeoutError:
        raise DeadlineError(
            "the text was not written before its deadline; try again later, or ask for less"
        ) from None
    if isinstance(part, BaseException):
        raise part
    return part

"""A gate that lets requests of one kind in at a time.

Owns who goes in when. On CPU vLLM 0.32 gives requests without an adapter the adapter of those that
they meet in a batch, and keeps what it computed so in its prefix cache: the two must not meet.
Knows no request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Turn:
    kind: Hashable
    admitted: asyncio.Future[None]


class KindGate:
    """Requests of the kind that is inside go in at once, unless another kind waits.

    When the last one has left, all of the kind that has waited longest go in together. So neither
    kind waits longer than the other one's running requests take.
    """

    def __init__(self) -> None:
        """Nobody is inside."""
        self._kind: Hashable = None
        self._inside = 0
        self._waiting: deque[_Turn] = deque()

    @asynccontextmanager
    async def enter(self, kind: Hashable) -> AsyncIterator[None]:
        """A block in which only requests of this kind are inside."""
        if self._inside and (kind != self._kind or self._waiting):
            await self._wait(kind)
        else:
            self._kind = kind
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, kind: Hashable) -> None:
        turn = _Turn(kind, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            await turn.admitted
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.admitted.cancelled():  # let in at the moment at which it gave up
                self._leave()
            raise

    def _leave(self) -> None:
        self._inside -= 1
        if self._inside:
            return
        left = [turn for turn in self._waiting if not turn.admitted.cancelled()]
        if not left:
            return
        self._kind = left[0].kind
        for turn in left:
            if turn.kind == self._kind:
                self._waiting.remove(turn)
                self._inside += 1
                turn.admitted.set_result(None)

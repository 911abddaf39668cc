"""HTTP connections that cannot be held open by doing nothing.

Owns two clocks that uvicorn lacks: one for a request's head that does not come to its end, one for
an answer that is not taken. Knows no request's meaning.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from genrec.serve.settings import ServeSettings


def build_protocol(settings: ServeSettings) -> type[H11Protocol]:
    """The protocol of a server's connections."""

    class PatientProtocol(_ClockedProtocol):
        head_seconds = settings.head_seconds
        write_seconds = settings.write_seconds

    return PatientProtocol


class _ClockedProtocol(H11Protocol):
    """HTTP/1.1 with an end to patience."""

    head_seconds: float
    write_seconds: float
    _head_clock: asyncio.TimerHandle | None = None
    _write_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head_clock()
        elif self._head_clock is None:  # the beginning of another head
            self._await_head()

    def on_response_complete(self) -> None:
        self._stop_head_clock()  # for a client that is idle uvicorn has a clock
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_clock = self.loop.call_later(self.write_seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_clock()
        self._stop_write_clock()  # what waits to write is told by uvicorn, not by resume_writing
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_clock = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_head_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _stop_write_clock(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None

    def _give_up(self) -> None:
        # close() would wait for the client to take what has been written.
        self.transport.abort()

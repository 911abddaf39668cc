"""A server from its settings to its end: bind, answer, drain.

Owns the process's life: signals, how long running requests may take, and what is said on the way.
Knows no route.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from genrec.errors import RecipeError
from genrec.serve.protocol import build_protocol
from genrec.serve.service import Service
from genrec.serve.settings import ServeSettings

_log = logging.getLogger(__name__)
_LARGEST_HEAD_BYTES = 32 << 10


def bind_port(settings: ServeSettings) -> socket.socket:
    """A socket on the settings' address, so that a port that is taken is said at once.

    Raises:
        RecipeError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise RecipeError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            f"pass another --port (0 takes a free one) or --host"
        ) from error
    return bound


def run_server(
    app: FastAPI, service: Service, bound: socket.socket, announce: Callable[[str], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish what runs.

    Args:
        app: the application.
        service: the one it was built for.
        bound: where to listen.
        announce: told the server's URL once it answers.

    Raises:
        GenrecError: the engine did not start.
    """
    settings = service.settings
    config = uvicorn.Config(
        app,
        http=build_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who forwards requests is the operator's to say: $FORWARDED_ALLOW_IPS.
        h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.keep_alive_seconds,
        # What still runs then has had drain_seconds already.
        timeout_graceful_shutdown=1,
    )
    _Server(config, service, lambda: announce(_write_url(settings, bound))).run([bound])
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
    """Uvicorn, which would close its port at once; this one first lets running requests finish."""

    def __init__(
        self, config: uvicorn.Config, service: Service, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._drained_since = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._service.failure is None and not self.should_exit:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True  # asked twice: now
        elif not self._service.is_draining:
            _log.info("draining: %d requests are running", self._service.running)
            self._drained_since = time.monotonic()
            self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.failure is not None:
            self.should_exit = True
        if self._service.is_draining:
            settings = self._service.settings
            waited = time.monotonic() - self._drained_since
            is_done = self._service.running == 0 and waited >= settings.linger_seconds
            if is_done or waited >= settings.drain_seconds + settings.linger_seconds:
                self.should_exit = True
        return await super().on_tick(counter)


def _write_url(settings: ServeSettings, bound: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{bound.getsockname()[1]}"

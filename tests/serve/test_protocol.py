"""The clocks of a connection, and the address of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from genrec.serve import run
from genrec.serve.protocol import build_protocol
from genrec.serve.settings import ServeSettings


def go_on(protocol: Any) -> None:
    protocol.resume_writing()


def leave(protocol: Any) -> None:
    protocol.connection_lost(None)


def stay(protocol: Any) -> None:
    """Take nothing."""


@pytest.mark.parametrize(("act", "n_ended"), [(stay, 1), (go_on, 0), (leave, 0)])
def test_a_reader_is_given_up_only_while_it_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None], n_ended: int
) -> None:
    monkeypatch.setattr(H11Protocol, "connection_lost", lambda *_: None)

    async def test() -> int:
        kind = build_protocol(ServeSettings(write_seconds=0.03))
        protocol: Any = object.__new__(kind)
        protocol.loop, protocol.flow = asyncio.get_running_loop(), Mock()
        protocol.transport = Mock()
        protocol.resume_writing()  # as a transport may without having asked for a pause
        protocol.pause_writing()
        act(protocol)
        await asyncio.sleep(0.1)
        return int(protocol.transport.abort.call_count)

    assert asyncio.run(test()) == n_ended


@pytest.mark.parametrize(
    ("host", "url"), [("::1", "http://[::1]:8123"), ("127.0.0.1", "http://127.0.0.1:8123")]
)
def test_an_address_is_written_as_urls_are(host: str, url: str) -> None:
    bound = Mock(getsockname=lambda: (host, 8123))
    assert run._write_url(ServeSettings(host=host), bound) == url

"""The gate that every HTTP request passes: id, host, key, size and time of its body, counters, log.

Owns what is decided before a route is known. Knows no route's meaning.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genrec.serve import logs
from genrec.serve.problems import answer_problem, build_problem
from genrec.serve.schemas import Problem
from genrec.serve.service import Service

STREAM_PATH = "/v1/recommendations/stream"
CLIENT_GONE = 499
"""What is logged for a client that left; nobody receives it."""

_access = logging.getLogger("genrec.serve.access")
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# The pages themselves hold nothing that is not public; what they ask for needs the key.
_OPEN_PATHS = frozenset(("/", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"))
_OPEN_PREFIXES = ("/playground/",)
_CHECKS = frozenset(("/healthz", "/readyz", "/metrics"))
"""Asked again and again by machines: not logged, and not counted as running."""


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Stand before an application.

        Args:
            app: what answers those who are let through.
            service: whose settings say who is.
        """
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        visit = _Visit(scope, headers, send)
        scope.setdefault("state", {})["request_id"] = visit.request_id
        token = logs.request_id.set(visit.request_id)
        is_check = scope["path"] in _CHECKS
        self._service.running += not is_check
        try:
            refused = self._find_refusal(visit, headers)
            if refused is not None:
                # What follows of the body is not read, so the connection cannot be used again.
                answer = answer_problem(
                    refused, {**_find_challenge(refused), "Connection": "close"}
                )
                await answer(scope, receive, visit.send)
            else:
                body = _Body(receive, *self._find_body_limits(scope))
                await self._app(scope, body.receive, visit.send)
        finally:
            self._service.running -= not is_check
            self._record(visit, is_check)
            logs.request_id.reset(token)

    def _find_refusal(self, visit: _Visit, headers: Headers) -> Problem | None:
        settings = self._service.settings
        path = visit.scope["path"]
        host = _strip_port(headers.get("host", ""))
        allowed = [name.lower() for name in settings.allowed_hosts]
        if allowed and host.lower() not in allowed:
            return build_problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server does not answer for host {host[:100]!r}; ask for "
                f"{settings.allowed_hosts[0]!r}, or start it with --allowed-host",
            )
        if settings.keys and not _is_open(path):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            owner = settings.keys.find_owner(key.strip()) if scheme.lower() == "bearer" else None
            if owner is None:
                return build_problem(
                    HTTPStatus.UNAUTHORIZED,
                    "no API key that is known; send `Authorization: Bearer KEY`",
                )
            visit.owner = owner
        if self._service.is_draining and path.startswith("/v1/"):
            return build_problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down; ask another one"
            )
        most, _ = self._find_body_limits(visit.scope)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > most:
            return _refuse_size(most)
        return None

    def _find_body_limits(self, scope: Scope) -> tuple[int, float]:
        settings = self._service.settings
        is_stream = scope["path"] == STREAM_PATH
        most = settings.max_stream_bytes if is_stream else settings.max_body_bytes
        return most, settings.body_seconds

    def _record(self, visit: _Visit, is_check: bool) -> None:
        seconds = time.monotonic() - visit.started
        # An exception passed through: the outermost handler answers it with 500.
        status = visit.status or (CLIENT_GONE if visit.is_gone else 500)
        route = getattr(visit.scope.get("route"), "path", "unmatched")
        metrics = self._service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if is_check:
            return
        fields = {
            "method": visit.scope["method"],
            "path": visit.scope["path"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 2),
            "bytes": visit.n_bytes,
            "client": (visit.scope.get("client") or ("",))[0],
        }
        if visit.owner:
            fields["key"] = visit.owner
        _access.info("%s %s", status, route, extra={logs.FIELDS: fields})


class _Visit:
    """One request on its way through the gate, and what is known of its answer."""

    def __init__(self, scope: Scope, headers: Headers, send: Send) -> None:
        given = headers.get("x-request-id", "")
        self.request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
        self.scope = scope
        self.started = time.monotonic()
        self.status = 0
        self.n_bytes = 0
        self.owner = ""
        self.is_gone = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = (b"x-request-id", self.request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), named]}
        else:
            self.n_bytes += len(message.get("body", b""))
        await self._send(message)


class _Body:
    """A request's body that may be neither larger nor slower than allowed."""

    def __init__(self, receive: Receive, most_bytes: int, seconds: float) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._n_bytes = 0
        self._is_whole = False

    async def receive(self) -> Message:
        if self._is_whole:  # what comes now is the client's leaving, which may take its time
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._ends - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body was not there after {self._seconds:g} s; send it faster",
                headers={"Connection": "close"},
            ) from None
        self._n_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._n_bytes > self._most_bytes:
            refused = _refuse_size(self._most_bytes)
            raise HTTPException(refused.status, refused.detail, headers={"Connection": "close"})
        return message


def _refuse_size(most_bytes: int) -> Problem:
    return build_problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {most_bytes:,} bytes; send less at once, or use {STREAM_PATH}",
    )


def _find_challenge(refused: Problem) -> dict[str, str]:
    if refused.status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": "2"} if refused.status == HTTPStatus.SERVICE_UNAVAILABLE else {}


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES)


def _strip_port(host: str) -> str:
    if host.startswith("["):  # an IPv6 address
        return host.partition("]")[0][1:]
    return host.rpartition(":")[0] if ":" in host else host

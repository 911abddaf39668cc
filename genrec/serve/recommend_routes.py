"""The routes that recommend: one request, a batch, a stream.

Owns how requests and answers travel. Knows neither limits nor engine.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import ExitStack, aclosing
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from genrec.errors import CapacityError, DataError
from genrec.serve import logs
from genrec.serve.answers import answer_request
from genrec.serve.limits import CLIENT_GONE, STREAM_PATH
from genrec.serve.problems import MEDIA_TYPE, ProblemError
from genrec.serve.schemas import BatchAnswer, BatchRequest, RecommendAnswer, RecommendRequest
from genrec.serve.service import Service
from genrec.serve.stream import answer_many

_T = TypeVar("_T")
NDJSON = "application/x-ndjson"
_FULL_LINE = re.compile(rb"\S[^\n]*")

_REASONS = {
    400: "The body is not JSON.",
    401: "No API key that is known.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    422: "A value is wrong; `detail` says which, the rule, and the way out.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "The server is at fault; its log says more by `request_id`.",
    503: "The engine is not running, or the server is shutting down.",
    504: "Not answered in time.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": reason,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, reason in _REASONS.items()
}
"""What a route that answers with problems documents."""


def build_router(service: Service) -> APIRouter:
    """The routes that recommend from a service."""
    router = APIRouter(prefix="/v1", tags=["recommendations"], responses=PROBLEMS)

    @router.post("/recommendations", summary="Recommend the next items for one history")
    async def recommend(body: RecommendRequest, request: Request) -> RecommendAnswer:
        """The k items that the model likes best after a history, out of those that may be answered.

        Every item exists in the catalogue's current version. `certified` says whether the list is
        proven to be the best there is; `exact` searches on until it is.
        """
        return await finish_unless_gone(request, answer_request(service, body))

    @router.post("/recommendations/batch", summary="Recommend for several histories")
    async def recommend_batch(body: BatchRequest, request: Request) -> BatchAnswer:
        """One entry a request, in their order: an answer, or an error of its own."""
        most = service.settings.max_batch
        if len(body.requests) > most:
            raise CapacityError(
                f"requests: {len(body.requests)} are more than this server's {most}; send fewer at "
                f"once, or use {STREAM_PATH}"
            )
        return await finish_unless_gone(request, _answer_batch(service, body.requests))

    @router.post(
        "/recommendations/stream",
        summary="Recommend for a large batch, line by line",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "One line a request, in their order, as they are done.",
                "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchEntry"}}},
            }
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    NDJSON: {"schema": {"type": "string"}},
                    "application/json": {
                        "schema": {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/RecommendRequest"},
                        }
                    },
                },
            }
        },
    )
    async def recommend_stream(request: Request) -> Response:
        """The body is one request a line (`application/x-ndjson`) or a JSON list of them.

        It is read whole before the first answer, and answers wait for their reader: a slow one
        costs the server no memory.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (NDJSON, "application/json"):
            raise ProblemError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"content type {kind[:100]!r} is neither {NDJSON} nor application/json; name one",
            )
        with ExitStack() as place:
            place.enter_context(service.hold_stream())
            requests = _split_requests(service, kind, await request.body())
            return _StreamAnswer(service, requests, place.pop_all())

    return router


async def finish_unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of work for a client, cancelled when the client leaves.

    Raises:
        HTTPException: it left; 499, which is seen in the log only.
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_until_gone(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(CLIENT_GONE, "the client left")
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


class _StreamAnswer(StreamingResponse):
    """Entries as lines; when it ends, however it ends, its work ends and its place is free."""

    def __init__(self, service: Service, requests: Iterable[object], place: ExitStack) -> None:
        self._entries = answer_many(service, requests, service.settings.look_ahead)
        self._place = place
        super().__init__(self._write_lines(), media_type=NDJSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            async with aclosing(self._entries):
                await super().__call__(scope, receive, send)

    async def _write_lines(self) -> AsyncIterator[bytes]:
        async for entry in self._entries:
            yield entry.model_dump_json().encode() + b"\n"


async def _answer_batch(service: Service, requests: Sequence[object]) -> BatchAnswer:
    entries = answer_many(service, requests, service.settings.look_ahead)
    async with aclosing(entries):
        results = [entry async for entry in entries]
    return BatchAnswer(request_id=logs.request_id.get(), results=results)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the body has been read; nothing else is to come


def _split_requests(service: Service, kind: str, body: bytes) -> Iterable[object]:
    if kind == NDJSON:
        # One at a time: all lines of a body of short ones take twenty times its memory.
        requests: Iterable[object] = (line.group() for line in _FULL_LINE.finditer(body))
        is_empty = _FULL_LINE.search(body) is None
    else:
        requests = parsed = _read_list(body, service.settings.max_body_bytes)
        is_empty = not parsed
    if is_empty:
        raise DataError("the body holds no request; send one a line, or a JSON list of them")
    return requests


def _read_list(body: bytes, most_bytes: int) -> list[object]:
    if len(body) > most_bytes:  # parsed, it takes many times the memory
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a JSON list of {len(body):,} bytes is more than {most_bytes:,}; send {NDJSON}",
        )
    try:
        requests = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "the body is not JSON; send a list of requests"
        ) from error
    if not isinstance(requests, list):
        raise DataError("the body is JSON but no list; send a list of requests")
    return requests

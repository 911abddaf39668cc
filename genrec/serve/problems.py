"""Errors as HTTP answers: problem+json, a status for each kind, and no trace of our insides.

Owns which error becomes which answer. Knows no route.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.client import responses
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from genrec.errors import CapacityError, DataError, DecodeError, GenrecError, RecipeError
from genrec.serve import logs
from genrec.serve.backend import BackendDownError, DeadlineError, QueueFullError
from genrec.serve.schemas import Fault, Problem

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)
_MOST_FAULTS, _MOST_CHARS = 20, 200
_MALFORMED, _NOT_AN_OBJECT = "json_invalid", "model_attributes_type"
_CATALOGUE = "/v1/catalog"
_NOT_JSON = "the body is not JSON; send a JSON object"
# An engine that is down comes back in seconds, or a balancer finds another server meanwhile.
_DOWN_SECONDS = 2


class ProblemError(GenrecError):
    """An error that knows its own status; for those that have no meaning outside HTTP."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Say what is wrong.

        Args:
            status: the answer's.
            detail: value, rule and way out.
            headers: to be sent along.
        """
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})


def find_status(error: GenrecError) -> int:
    """The status that answers an error: 4xx where the request is at fault, else 5xx."""
    if isinstance(error, ProblemError):
        return error.status
    if isinstance(error, QueueFullError):
        return HTTPStatus.TOO_MANY_REQUESTS
    if isinstance(error, DeadlineError):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, BackendDownError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, DataError | CapacityError | RecipeError | DecodeError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.INTERNAL_SERVER_ERROR


def describe_error(error: GenrecError | ValidationError | RequestValidationError) -> Problem:
    """The problem that a client is told of; of our own faults it learns only the request's id."""
    if isinstance(error, RequestValidationError):
        return _describe_faults(error.errors())
    if isinstance(error, ValidationError):
        return _describe_faults(error.errors(include_url=False, include_context=False))
    status = find_status(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s: %s", type(error).__name__, error)
        return build_problem(status, "the server is at fault; its log says more by request_id")
    return build_problem(status, str(error))


def build_problem(status: int, detail: str, errors: list[Fault] | None = None) -> Problem:
    """A problem of the current request."""
    return Problem(
        title=responses.get(status, "Client Closed Request"),
        status=status,
        detail=detail,
        request_id=logs.request_id.get(),
        errors=errors or [],
    )


def answer_problem(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer of a problem."""
    # ASCII only: what clients sent comes back in messages, and half a surrogate pair has no UTF-8.
    content = json.dumps(problem.model_dump())
    return Response(content, problem.status, dict(headers or {}), MEDIA_TYPE)


def find_headers(error: GenrecError) -> dict[str, str]:
    """What an error's answer says in its head."""
    if isinstance(error, ProblemError):
        return error.headers
    if isinstance(error, QueueFullError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_seconds)))}
    if isinstance(error, BackendDownError):
        return {"Retry-After": str(_DOWN_SECONDS)}
    return {}


def add_handlers(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""
    app.add_exception_handler(GenrecError, _answer_genrec)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    # Starlette answers with this one, and raises the error on, so that the log has its trace.
    app.add_exception_handler(Exception, _answer_bug)


def _answer(
    request: Request, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    """The HTTP answer of a problem, in the shape of the route that was asked, where it has one."""
    route = request.scope.get("route")
    shape: Callable[..., Response] = getattr(route, "answer_problem", answer_problem)
    return shape(problem, headers)


async def _answer_genrec(request: Request, error: Exception) -> Response:
    assert isinstance(error, GenrecError)
    return _answer(request, describe_error(error), find_headers(error))


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, describe_error(error))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if isinstance(error.__cause__, ValueError | RecursionError):  # FastAPI could not parse it
        detail = _NOT_JSON
    elif error.status_code == HTTPStatus.NOT_FOUND and "route" not in request.scope:
        detail = _explain_path(request.url.path)
    return _answer(request, build_problem(error.status_code, detail), error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    # The gate's context is gone by now; what it wrote down about the request is not.
    token = logs.request_id.set(request.scope.get("state", {}).get("request_id", ""))
    try:
        detail = "the server is at fault; its log says more by request_id"
        problem = build_problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
    finally:
        logs.request_id.reset(token)
    return _answer(request, problem, {"X-Request-ID": problem.request_id})


def _explain_path(path: str) -> str:
    if path == _CATALOGUE or path.startswith(f"{_CATALOGUE}/"):
        return "this server's catalogue does not change; start it with --store DIR for that"
    return f"there is nothing at {path[:_MOST_CHARS]!r}; /openapi.json says what there is"


def _describe_faults(found: Sequence[Any]) -> Problem:
    """The problem of a body that breaks the schema, or is no JSON."""
    if any(fault["type"] == _MALFORMED for fault in found):
        return build_problem(HTTPStatus.BAD_REQUEST, _NOT_JSON)
    if any(fault["type"] == _NOT_AN_OBJECT and len(fault["loc"]) == 1 for fault in found):
        return build_problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the body is no JSON object; send one, with Content-Type: application/json",
        )
    faults = [
        Fault(where=_name_place(fault["loc"]), rule=str(fault["msg"])[:_MOST_CHARS])
        for fault in found[:_MOST_FAULTS]
    ]
    more = len(found) - len(faults)
    detail = "; ".join(f"{fault.where or 'body'}: {fault.rule}" for fault in faults[:3])
    rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""  # noqa: PLR2004
    if more > 0:
        faults.append(Fault(where="", rule=f"and {more} more"))
    return build_problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail + rest, faults)


def _name_place(steps: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in steps)[:_MOST_CHARS]

"""Texts in the words of OpenAI's API: completions, chat, and the names of models.

Owns how such a request becomes a job, and its parts an answer or a stream. What clients send is
data: it becomes neither a special token nor a role. Knows no engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from genrec.decode.writer import TextPart
from genrec.errors import CapacityError, DataError, GenrecError
from genrec.prompts.chat import Message, frame_messages
from genrec.prompts.encode import encode_prompt, encode_rendered
from genrec.prompts.render import SID
from genrec.prompts.sandbox import Rendered
from genrec.recipe import suggest_name
from genrec.recommender import Recommender
from genrec.serve.backend import TextJob
from genrec.serve.problems import ProblemError, describe_error
from genrec.serve.recommend_routes import finish_unless_gone
from genrec.serve.schemas import Problem
from genrec.serve.service import Service
from genrec.serve.text_forms import ChatForm, CompletionForm, Progress
from genrec.serve.text_schemas import (
    ChatAnswer,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    ErrorDetail,
    ModelEntry,
    ModelList,
    TextRequestBody,
)

_DEFAULT_TOKENS = 16
"""What a completion writes that does not say; OpenAI's own."""

_EVENTS = "text/event-stream"
_TYPES: dict[int, str] = {
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}
_REASONS = {
    400: "A value is wrong; `error.message` says which, the rule, and the way out.",
    404: "No such model.",
    429: "Too many texts are being written; try again after `Retry-After` seconds.",
    500: "The server is at fault; its log says more by the request's id.",
    503: "The engine is not running, or the server is shutting down.",
    504: "Not answered in time.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason} for status, reason in _REASONS.items()
}


def build_router(service: Service) -> APIRouter:
    """The routes that write texts with a service's model."""
    router = APIRouter(prefix="/v1", tags=["texts"], route_class=_OpenAIRoute, responses=_ERRORS)
    started = int(time.time())

    @router.get("/models", summary="The names that `model` may have")
    async def list_models() -> ModelList:
        """The served model, and its adapters."""
        return ModelList(data=[ModelEntry(id=n, created=started) for n in _list_names(service)])

    @router.get("/models/{name}", summary="Whether `model` may have a name")
    async def find_model(name: str) -> ModelEntry:
        """The entry of one name."""
        _find_adapter(service, name)
        return ModelEntry(id=name, created=started)

    @router.post(
        "/completions",
        summary="Go on from a text",
        response_model=Completion,
        responses={200: {"content": {_EVENTS: {}}}},
    )
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """What the model writes after a prompt, as it stands in training rows of plain text.

        A model that was trained in a chat template is better asked through /v1/chat/completions.
        """
        text = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
        prompt = Rendered(text, mark_data(text, semantic_ids=body.semantic_ids))
        tokenizer = service.edition.recommender.tokenizer
        ids = await service.run_apart(encode_prompt, tokenizer, prompt)
        most = body.max_tokens or min(_DEFAULT_TOKENS, service.settings.max_new_tokens)
        job = build_job(service, body, ids, most)
        return await _write_answer(service, request, body, job, CompletionForm())

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        response_model=ChatAnswer,
        responses={200: {"content": {_EVENTS: {}}}},
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The model's answer, in the chat template that it was trained in.

        A model of plain text takes a single message of role user, which is its prompt.
        """
        ids = await service.run_apart(encode_chat, service.edition.recommender, body)
        most = body.max_completion_tokens or body.max_tokens or service.settings.max_new_tokens
        job = build_job(service, body, ids, most)
        return await _write_answer(service, request, body, job, ChatForm())

    return router


def build_job(
    service: Service, body: TextRequestBody, prompt: list[int], max_tokens: int
) -> TextJob:
    """The job of a request.

    Args:
        service: whose limits hold.
        body: the request.
        prompt: its tokens.
        max_tokens: how many it wants at most.

    Raises:
        ProblemError: no such model.
        CapacityError: more tokens than this server writes.
    """
    if max_tokens > service.settings.max_new_tokens:
        raise CapacityError(
            f"max_tokens: {max_tokens:,} is more than this server's "
            f"{service.settings.max_new_tokens:,}; ask for fewer"
        )
    return TextJob(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stops,
        adapter=_find_adapter(service, body.model),
        deadline=service.find_deadline(),
    )


def encode_chat(recommender: Recommender, body: ChatRequest) -> list[int]:
    """The tokens of a conversation, up to where the answer begins.

    Raises:
        DataError: the model has no place for such messages.
    """
    messages = [
        Message(one.role, Rendered(one.text, mark_data(one.text, semantic_ids=body.semantic_ids)))
        for one in body.messages
    ]
    tokenizer, first = recommender.tokenizer, messages[0]
    if len(messages) == 1 and first.role == "user":
        # As in training, a system message of the recipe's included.
        return encode_prompt(tokenizer, first.content, recommender.chat)
    if recommender.chat is None:
        raise DataError(
            f"messages: this model was trained on plain prompts and has no roles; send one message "
            f"of role user ({len(messages)} were sent, the first of role {first.role!r}), or use "
            f"/v1/completions"
        )
    return encode_rendered(tokenizer, frame_messages(tokenizer, messages))


def mark_data(text: str, *, semantic_ids: bool) -> tuple[tuple[int, int], ...]:
    """The ranges of a client's text that are only characters: all of it, or all but semantic ids.

    Args:
        text: what the client sent.
        semantic_ids: whether semantic ids in it stand for items.
    """
    if not semantic_ids:
        return ((0, len(text)),)
    ends = [0, *(place for found in SID.finditer(text) for place in found.span()), len(text)]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return tuple((start, end) for start, end in pairs if start < end)


class _OpenAIRoute(APIRoute):
    """A route whose errors are in OpenAI's shape, where what is wrong with a request is 400."""

    @staticmethod
    def answer_problem(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
        wrong = problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
        status = HTTPStatus.BAD_REQUEST if wrong else problem.status
        return JSONResponse(_shape(problem).model_dump(), status, headers)


def _shape(problem: Problem) -> ErrorAnswer:
    return ErrorAnswer(
        error=ErrorDetail(
            message=problem.detail,
            type=_TYPES.get(problem.status, "invalid_request_error"),
            param=problem.errors[0].where.removeprefix("body.") if problem.errors else None,
            code="model_not_found" if problem.status == HTTPStatus.NOT_FOUND else None,
        )
    )


def _list_names(service: Service) -> list[str]:
    return [service.settings.model_name, *service.backend.adapters]


def _find_adapter(service: Service, model: str) -> str | None:
    """The adapter that a model's name means; None is the model as trained.

    Raises:
        ProblemError: there is no such model.
    """
    names = _list_names(service)
    if model not in names:
        raise ProblemError(
            HTTPStatus.NOT_FOUND, f"model {model!r} is not served; {suggest_name(model, names)}"
        )
    return None if model == service.settings.model_name else model


async def _write_answer(
    service: Service,
    request: Request,
    body: TextRequestBody,
    job: TextJob,
    form: CompletionForm | ChatForm,
) -> Response:
    progress = Progress(body.model, len(job.prompt))
    parts = service.backend.write(job)
    if not body.stream:
        text = await finish_unless_gone(request, _collect(parts, progress))
        return JSONResponse(form.build_whole(progress, text).model_dump())
    # Errors before the first part still have a status of their own.
    first = await finish_unless_gone(request, _take_first(parts))
    show_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _write_events(_chain(first, parts), progress, form, show_usage=show_usage)
    return _EventStream(parts, events)


async def _collect(parts: AsyncGenerator[TextPart], progress: Progress) -> str:
    text = []
    async with aclosing(parts):
        async for part in parts:
            progress.count(part)
            text.append(part.text)
    return "".join(text)


async def _take_first(parts: AsyncGenerator[TextPart]) -> TextPart:
    return await anext(parts)


async def _chain(first: TextPart, parts: AsyncGenerator[TextPart]) -> AsyncGenerator[TextPart]:
    yield first
    async for part in parts:
        yield part


async def _write_events(
    parts: AsyncIterator[TextPart],
    progress: Progress,
    form: CompletionForm | ChatForm,
    *,
    show_usage: bool,
) -> AsyncIterator[bytes]:
    for opening in form.build_opening(progress):
        yield _dump_event(opening)
    try:
        async for part in parts:
            progress.count(part)
            if part.text or part.finish:
                yield _dump_event(form.build_piece(progress, part))
    except GenrecError as error:
        yield _dump_event(_shape(describe_error(error)).model_dump())
        return
    if show_usage:
        usage = progress.usage.model_dump()
        yield _dump_event(form.build_frame(progress) | {"usage": usage})
    yield b"data: [DONE]\n\n"


def _dump_event(values: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events of a text; when it ends, however it ends, the text's place is free."""

    def __init__(self, parts: AsyncGenerator[TextPart], events: AsyncIterator[bytes]) -> None:
        self._parts = parts
        super().__init__(events, media_type=_EVENTS, headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._parts):
            await super().__call__(scope, receive, send)

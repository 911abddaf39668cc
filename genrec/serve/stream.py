"""Many requests of one client: worked on a few at a time, answered in order.

Owns how many are under way, and what becomes of one that fails or meets a full queue. Knows neither
HTTP nor engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable

from pydantic import ValidationError

from genrec.errors import GenrecError
from genrec.serve.answers import answer_request
from genrec.serve.backend import QueueFullError, wait_for_room
from genrec.serve.problems import describe_error
from genrec.serve.schemas import BatchEntry, RecommendAnswer, RecommendRequest
from genrec.serve.service import Service

_LONGEST_PAUSE_SECONDS = 1.0


async def answer_many(
    service: Service, requests: Iterable[object], look_ahead: int
) -> AsyncGenerator[BatchEntry]:
    """The entry of each request, in their order.

    At most `look_ahead` are under way or done and not yet taken, so a reader that is slow holds
    back the work, and memory does not grow. A reader that leaves cancels what is under way.

    Args:
        service: the server.
        requests: parsed JSON (an object each), or JSON as bytes; checked when its turn comes.
        look_ahead: at least 1.
    """
    waiting: deque[asyncio.Task[BatchEntry]] = deque()
    try:
        for index, request in enumerate(requests):
            if len(waiting) == look_ahead:
                yield await waiting.popleft()
            waiting.append(asyncio.create_task(_answer_entry(service, index, request)))
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()


async def _answer_entry(service: Service, index: int, given: object) -> BatchEntry:
    try:
        request = (
            RecommendRequest.model_validate_json(given)
            if isinstance(given, bytes)
            else RecommendRequest.model_validate(given)
        )
        return BatchEntry(index=index, answer=await _answer_patiently(service, request))
    except (GenrecError, ValidationError) as error:
        return BatchEntry(index=index, error=describe_error(error))


async def _answer_patiently(service: Service, request: RecommendRequest) -> RecommendAnswer:
    """The answer to a request that waits for room in the queue, where others are turned away.

    A batch or stream is one client that can be held back; refusing a part of it would only make it
    send that again.
    """
    deadline = service.find_deadline(request.timeout_seconds)
    while True:
        try:
            return await answer_request(service, request, deadline)
        except QueueFullError as error:
            await wait_for_room(error, deadline, _LONGEST_PAUSE_SECONDS)

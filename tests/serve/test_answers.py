"""One answer and many beside the usual way: reasons, no time left, no room in the queue."""

from __future__ import annotations

import asyncio
import copy
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from genrec.decode.writer import Writer
from genrec.errors import DataError
from genrec.prompts.explain import load_shipped_explain
from genrec.recommender import Recommender
from genrec.serve import stream
from genrec.serve.answers import answer_request, trace_request
from genrec.serve.app import build_app
from genrec.serve.backend import DeadlineError, Edition, QueueFullError
from genrec.serve.metrics import ServeMetrics
from genrec.serve.schemas import RecommendAnswer, RecommendRequest
from genrec.serve.service import Service
from genrec.serve.settings import ServeSettings
from genrec.serve.torch_backend import TorchBackend
from tests.serve.conftest import MakeService
from tests.serve.held import hold_engine

ANSWER = RecommendAnswer(
    request_id="", version=1, items=[], certified=True, bound=None, evaluations=0, timings_ms={}
)


def test_reasons_come_with_the_items_and_their_source(recommender: Recommender) -> None:
    told = copy.copy(recommender)
    told.explain_prompt = load_shipped_explain()
    edition, settings, metrics = Edition(1, told), ServeSettings(), ServeMetrics()
    engine: Any = told.engine
    writer = Writer(engine.model, told.tokenizer)
    backend = TorchBackend(edition, settings, metrics, writer=writer)
    body = {"history": [told.item_ids[0]], "k": 2, "explain": True}
    with TestClient(build_app(Service(edition, backend, settings, metrics=metrics))) as client:
        answer = client.post("/v1/recommendations", json=body).json()
    assert answer["reason_source"] == "untrained"
    assert len(answer["items"]) == 2
    assert all(item["reason"] is None or item["reason"] for item in answer["items"])
    assert list(answer["timings_ms"]) == ["encode", "queue", "search", "explain"]


def test_a_prompt_has_its_deadline_too(
    make_service: MakeService, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RecommendRequest(history=[recommender.item_ids[0]])
    service: Service = make_service()
    monkeypatch.setattr(service.backend, "check_room", lambda deadline: None)
    with pytest.raises(DeadlineError, match="not answered in time"):
        asyncio.run(answer_request(service, request, time.monotonic() - 1))


def test_a_search_that_cannot_be_shown(make_service: MakeService, recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    service: Service = make_service()
    nothing = RecommendRequest.model_validate({"history": [known], "filters": {"allow": []}})
    with pytest.raises(DataError, match="so there is no search"):
        asyncio.run(trace_request(service, nothing))
    service.replace_edition(Edition(1, hold_engine(recommender)[0]))
    with pytest.raises(DataError, match="engine 'torch' does not show how it searches"):
        asyncio.run(trace_request(service, RecommendRequest(history=[known])))


@pytest.mark.parametrize(("n_full", "status"), [(2, None), (100, 429)])
def test_a_batch_waits_for_room_until_its_deadline(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, n_full: int, status: int | None
) -> None:
    asked = 0

    async def answer(*_: object) -> RecommendAnswer:
        nonlocal asked
        asked += 1
        if asked <= n_full:
            raise QueueFullError("the queue is full", 0.02)
        return ANSWER

    monkeypatch.setattr(stream, "answer_request", answer)

    async def read() -> list[Any]:
        request = {"history": ["a"], "timeout_seconds": 0.3}
        return [entry async for entry in stream.answer_many(make_service(), [request], 4)]

    (entry,) = asyncio.run(read())
    assert (entry.answer == ANSWER) == (status is None)
    assert (entry.error and entry.error.status) == status
    assert asked > 2

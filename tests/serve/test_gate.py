"""What is decided before a route: ids, hosts, keys, sizes, times; and what is said and counted."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from genrec.recommender import Recommender
from genrec.serve import logs
from genrec.serve.app import build_app
from genrec.serve.backend import Edition
from genrec.serve.keys import KeyRing, hash_key
from genrec.serve.limits import CLIENT_GONE
from genrec.serve.service import Service
from tests.serve.asgi import Call, run_with, wait_for
from tests.serve.conftest import MakeService
from tests.serve.held import hold_engine

URL = "/v1/recommendations"


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "state": "ready", "version": 1, "items": 60, "adapters": [], "domains": []
    }  # fmt: skip


def test_a_draining_server_says_so_and_takes_nothing(make_service: MakeService) -> None:
    service = make_service()
    with TestClient(build_app(service)) as client:
        service.is_draining = True
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["state"]) == (503, "draining")
        assert client.get("/healthz").status_code == 200
        refused = client.post(URL, json={"history": ["x"]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert "shutting down" in refused.json()["detail"]


def test_an_engine_that_does_not_start_leaves_the_server_failed(
    make_service: MakeService, recommender: Recommender
) -> None:
    service = make_service()
    broken, held = hold_engine(recommender)
    service.backend._edition = Edition(1, broken)  # type: ignore[attr-defined]
    held.rank_prompts = lambda *_, **__: held.engine.rank_prompts([[0]], 2)  # type: ignore[method-assign]
    with TestClient(build_app(service)) as client:
        assert client.get("/readyz").json()["state"] == "failed"
        assert "forbidden" in str(service.failure)
        down = client.post(URL, json={"history": [recommender.item_ids[0]]})
        assert down.status_code == 503
        assert down.headers["retry-after"] == "2"


def test_request_ids_are_taken_if_sane(client: TestClient) -> None:
    given = client.get("/healthz", headers={"X-Request-ID": "abc-1.2"})
    assert given.headers["x-request-id"] == "abc-1.2"
    for hostile in ("a b", "x" * 129, '"}', ""):
        made = client.get("/nope", headers={"X-Request-ID": hostile})
        assert re.fullmatch("[0-9a-f]{16}", made.headers["x-request-id"])
        assert made.json()["request_id"] == made.headers["x-request-id"]


def test_errors_are_problems(client: TestClient) -> None:
    missing, method = client.get("/nope"), client.get(URL)
    assert (missing.status_code, method.status_code) == (404, 405)
    for answer in (missing, method, client.post(URL, json=[1])):
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"type", "title", "status", "detail", "request_id", "errors"}
    assert "Content-Type: application/json" in client.post(URL, content=b"{}").json()["detail"]


def test_paths_that_lead_nowhere_say_which_do(client: TestClient) -> None:
    assert "/openapi.json says what" in client.get("/v1/nothing").json()["detail"]
    for path in ("/v1/catalog", "/v1/catalog/items"):
        assert "start it with --store DIR" in client.post(path, json={}).json()["detail"]


def test_many_faults_are_counted_not_all_told(client: TestClient) -> None:
    problem = client.post(URL, json={"history": [0] * 30, **{f"x{i}": 1 for i in range(9)}}).json()
    assert len(problem["errors"]) == 21
    assert problem["errors"][-1]["rule"].startswith("and ")
    assert re.search("; and [0-9]+ more$", problem["detail"])


def test_malformed_bodies(client: TestClient) -> None:
    for body in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"k": ' + b"9" * 5000 + b"}", b"nul"):
        answer = client.post(URL, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body[:20]
        assert answer.json()["detail"] == "the body is not JSON; send a JSON object"
        assert answer.json()["request_id"]


def test_our_own_faults_show_an_id_and_nothing_else(
    make_service: MakeService, recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service()
    other, held = hold_engine(recommender)
    service.replace_edition(Edition(1, other))
    logging.getLogger("genrec").propagate = True
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        body = {"history": [recommender.item_ids[0]]}
        held.fault = RuntimeError("secret path /srv/x")
        answer = client.post(URL, json=body, headers={"X-Request-ID": "mine"})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"
        metrics = client.get("/metrics").text
        assert 'requests_total{route="/v1/recommendations",status="500"} 1.0' in metrics
        held.fault = None
        assert client.post(URL, json=body).status_code == 200


def test_an_answer_that_is_no_item_is_counted_and_not_sent(
    make_service: MakeService, recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service()
    other, held = hold_engine(recommender)
    service.replace_edition(Edition(1, other))
    wrong = held.engine.rank_prompts([[0]], 2)
    logging.getLogger("genrec").propagate = True
    with TestClient(build_app(service)) as client:
        for items in ([60, 3], [1, 1], [0, 2], [-7, 2]):
            wrong.item_index[0] = items
            held.rank_prompts = lambda *_, **__: wrong  # type: ignore[method-assign]
            body = {"history": [recommender.item_ids[0]], "k": 2}
            answer = client.post(URL, json=body)
            assert answer.status_code == 500, items
            assert "genrec's" not in answer.text
        assert "genrec_invalid_answers_total 4.0" in client.get("/metrics").text
    assert "no items of version 1" in caplog.text


def test_a_body_may_only_be_so_large(make_service: MakeService) -> None:
    app = build_app(make_service(max_body_bytes=100))
    with TestClient(app) as client:
        large = {"history": ["x" * 200]}
        declared = client.post(URL, json=large)
        chunked = client.post(URL, content=iter([b"x" * 60] * 3))
        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert "larger than 100 bytes" in answer.json()["detail"]
            assert answer.headers["connection"] == "close"
        odd = client.post(URL, content=b"{}", headers={"content-length": "-1"})
        assert odd.status_code == 413


def test_a_body_may_only_take_so_long(make_service: MakeService) -> None:
    app = build_app(make_service(body_seconds=0.05))

    async def test() -> None:
        call = Call(app, URL).send(b'{"history": ', more=True)
        await call.task
        assert call.status == 408
        assert "not there after 0.05 s" in call.json()["detail"]

    run_with(app, test)


def test_keys(make_service: MakeService, recommender: Recommender) -> None:
    ring = KeyRing((("ann", hash_key("right")), ("bob", hash_key("other"))))
    service = make_service(keys=ring)
    body = {"history": [recommender.item_ids[0]]}
    with TestClient(build_app(service)) as client:
        for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            refused = client.post(URL, json=body, headers=sent)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for key in ("right", "other"):
            sent = {"Authorization": f"Bearer {key}"}
            assert client.post(URL, json=body, headers=sent).status_code == 200
        described = client.get("/openapi.json").json()
        assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_only_named_hosts_are_answered(make_service: MakeService) -> None:
    app = build_app(make_service(allowed_hosts=("localhost", "::1", "Shop.example")))
    with TestClient(app) as client:
        for host, status in (
            ("localhost", 200), ("localhost:80", 200), ("[::1]:80", 200), ("evil.example", 421),
            ("", 421), ("LocalHost", 200), ("shop.example:80", 200),
        ):  # fmt: skip
            assert client.get("/healthz", headers={"Host": host}).status_code == status, host


def test_pages_elsewhere_may_ask_only_if_told(make_service: MakeService) -> None:
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with TestClient(build_app(make_service())) as client:
        assert "access-control-allow-origin" not in client.options(URL, headers=asks).headers
    app = build_app(make_service(cors_origins=("https://shop.example",)))
    with TestClient(app) as client:
        allowed = client.options(URL, headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"


def test_a_line_is_logged_for_each_request(client: TestClient, recommender: Recommender) -> None:
    stream = io.StringIO()
    before = [logging.getLogger(n).handlers[:] for n in ("uvicorn", "uvicorn.error")]
    logs.set_up_logs(stream)
    try:
        logging.getLogger("genrec").setLevel(logging.INFO)
        body = {"history": [recommender.item_ids[0]]}
        client.post(URL, json=body, headers={"X-Request-ID": "mine"})
        client.get("/healthz")
        try:
            raise ValueError("a\nb")
        except ValueError:
            logging.getLogger("genrec.x").exception("line\nend")
    finally:
        for name, handlers in zip(("uvicorn", "uvicorn.error"), before, strict=True):
            logging.getLogger(name).handlers[:] = handlers
            logging.getLogger(name).propagate = True
    access, fault = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert access["request_id"] == "mine"
    assert (access["status"], access["route"]) == (200, URL)
    assert access["ms"] > 0
    assert fault["message"] == "line\nend"
    assert "ValueError" in fault["trace"]
    assert "request_id" not in fault


def test_metrics_count_requests_stages_and_answers(
    make_service: MakeService, recommender: Recommender
) -> None:
    with TestClient(build_app(make_service())) as client:
        client.post(URL, json={"history": [recommender.item_ids[0]], "k": 3})
        text = client.get("/metrics").text
    for line in (
        'genrec_requests_total{route="/v1/recommendations",status="200"} 1.0',
        'genrec_stage_seconds_count{stage="encode"} 1.0',
        'genrec_stage_seconds_count{stage="queue"} 1.0',
        'genrec_stage_seconds_count{stage="search"} 1.0',
        "genrec_answers_total 3.0",
        "genrec_invalid_answers_total 0.0",
        "genrec_queue_depth 0.0",
        "genrec_ready 1.0",
        "genrec_catalogue_items 60.0",
    ):
        assert line in text
    assert re.search(r"genrec_beams_total [1-9]", text)


def test_a_client_that_leaves_gives_its_place_up(
    make_service: MakeService, recommender: Recommender
) -> None:
    service: Service = make_service()
    other, held = hold_engine(recommender)
    app = build_app(service)
    body = json.dumps({"history": [recommender.item_ids[0]]}).encode()

    async def test() -> None:
        service.replace_edition(Edition(1, other))
        held.gate.clear()
        first = Call(app, URL).send(body)
        await wait_for(lambda: held.batches)
        second, third = Call(app, URL).send(body), Call(app, URL).send(body)
        queued = service.metrics.queued
        await wait_for(lambda: queued.collect()[0].samples[0].value == 2)
        second.leave()
        await second.task
        assert second.status == CLIENT_GONE
        assert queued.collect()[0].samples[0].value == 1
        held.gate.set()
        await asyncio.gather(first.task, third.task)
        assert (first.status, third.status) == (200, 200)
        assert held.batches == [1, 1]

    run_with(app, test)


def test_a_slow_reader_holds_back_the_work(
    make_service: MakeService, recommender: Recommender
) -> None:
    service: Service = make_service(look_ahead=3)
    other, held = hold_engine(recommender)
    app = build_app(service)
    line = json.dumps({"history": [recommender.item_ids[0]], "k": 1}).encode() + b"\n"

    async def test() -> None:
        service.replace_edition(Edition(1, other))
        kind = {"content-type": "application/x-ndjson"}
        call = Call(app, f"{URL}/stream", kind).send(line * 50)
        call.reads.clear()
        await wait_for(lambda: held.batches)
        await asyncio.sleep(0.2)
        assert sum(held.batches) <= 5
        call.reads.set()
        await wait_for(lambda: len(call.body.splitlines()) > 5)
        call.leave()
        await call.task
        assert sum(held.batches) < 50
        with service.hold_stream():
            assert service._n_streams == 1

    run_with(app, test)


def test_the_description_is_complete(client: TestClient) -> None:
    described: dict[str, Any] = client.get("/openapi.json").json()
    names = [
        operation["operationId"]
        for path in described["paths"].values()
        for operation in path.values()
    ]
    assert len(names) == len(set(names))
    assert {"recommend", "recommend_batch", "recommend_stream", "check_ready"} <= set(names)
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
    recommend = described["paths"][URL]["post"]
    assert {"401", "413", "422", "429", "503", "504"} <= set(recommend["responses"])
    assert described["components"]["schemas"]["RecommendRequest"]["examples"]
    assert hashlib.sha256(b"right").hexdigest() in hash_key("right")

"""The catalogue over HTTP: changes, their faults, and who sees them when."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from genrec.decode.torch_engine import TorchEngine
from genrec.recommender import Recommender
from genrec.serve.app import build_app
from genrec.serve.catalogue_routes import Writer, build_router
from genrec.serve.catalogue_store import CatalogueStore, Outcome, open_store
from genrec.serve.journal import Journal, StoreFullError, StoreWriteError
from genrec.serve.service import Service
from tests.serve.asgi import Call, run_with, wait_for

MakeService = Callable[..., Service]
HISTORY = ["B0001", "B0002"]


@pytest.fixture
def store(recommender: Recommender, tiny_run: Path, tmp_path: Path) -> CatalogueStore:
    """A store that holds the model's own items; its server closes it."""
    return open_store(tmp_path / "store", recommender, model=tiny_run / "model")


@pytest.fixture
def app(make_service: MakeService, store: CatalogueStore) -> FastAPI:
    """A server with that store."""
    service = make_service()
    service.encoder = store
    return build_app(service, [build_router(service, store)])


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client of it."""
    with TestClient(app) as running:
        yield running


def add(client: TestClient, *ids: str, **values: Any) -> dict[str, Any]:
    items = [{"item_id": i, "title": f"{i} lamp", **values} for i in ids]
    answer = client.post("/v1/catalog/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def recommend(client: TestClient, **values: Any) -> list[str]:
    answer = client.post("/v1/recommendations", json={"history": HISTORY, "k": 50} | values)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def test_a_change_is_seen_by_the_next_request(client: TestClient) -> None:
    assert client.get("/v1/catalog").json() | {"changed": ""} == {
        "version": 1, "items": 60, "unavailable": 0, "oldest_version": 1, "changed": "",
    }  # fmt: skip
    done = add(client, "desk-lamp", brand="Acme", categories="Home > Lamps", price=12)
    assert (done["version"], done["items"], done["removed"]) == (2, 61, [])
    assert done["results"][0]["status"] == "added" and done["request_id"]
    assert recommend(client, k=1, filters={"allow": ["desk-lamp"]}) == ["desk-lamp"]
    assert recommend(client, k=1, filters={"categories": ["lamps"]}) == ["desk-lamp"]
    assert "desk-lamp" not in recommend(client, history=["desk-lamp"])
    assert recommend(client, history=[{"text": "a folding lamp"}, {"item_id": "desk-lamp"}])
    switched = {"items": [{"item_id": "desk-lamp", "available": False}]}
    assert client.post("/v1/catalog/availability", json=switched).json()["switched"] == 1
    assert client.get("/v1/catalog").json()["unavailable"] == 1
    assert recommend(client, filters={"allow": ["desk-lamp"]}) == []
    gone = client.post("/v1/catalog/items/remove", json={"item_ids": ["B0010", "B0011"]})
    assert (gone.json()["removed"], gone.json()["items"]) == (["B0010", "B0011"], 59)
    assert not {"B0010", "B0011"} & set(recommend(client))
    answer = client.post("/v1/recommendations", json={"history": ["B0010"]})
    assert answer.status_code == 422 and "version 4" in answer.json()["detail"]
    assert "genrec_catalogue_version 4.0" in client.get("/metrics").text
    assert "genrec_catalogue_items 59.0" in client.get("/metrics").text


def test_a_version_is_brought_back(client: TestClient) -> None:
    add(client, "one")
    add(client, "two")
    done = client.post("/v1/catalog/rollback", json={"version": 2}).json()
    assert (done["version"], done["items"], done["removed"]) == (4, 61, ["two"])
    listed = client.get("/v1/catalog/versions").json()["versions"]
    assert [(v["version"], v["action"], v["content_of"]) for v in listed] == [
        (4, "rollback", 2), (3, "add", None), (2, "add", None), (1, "start", None),
    ]  # fmt: skip
    assert len(client.get("/v1/catalog/versions?limit=2").json()["versions"]) == 2
    missing = client.post("/v1/catalog/rollback", json={"version": 9})
    assert missing.status_code == 422 and "1 to 4 can be had back" in missing.json()["detail"]


def test_what_is_wrong_is_a_problem_and_no_change(client: TestClient) -> None:
    item = {"item_id": "x", "title": "X"}
    for path, body, detail in (
        ("items", {"items": []}, "at least 1"),
        ("items", {"items": [item, item]}, "'x' comes twice"),
        ("items", {"items": [{"item_id": "x"}]}, "title"),
        ("items", {"items": [item | {"embedding": [1, 2]}]}, "2 numbers"),
        ("items", {"items": [item | {"embedding": ["1"]}]}, "valid number"),
        ("items", {"items": [item | {"surprise": 1}]}, "Extra inputs"),
        ("items", {"items": [item] * 1001}, "at most 1000"),
        ("items", {"items": [item | {"title": "\0"}]}, "neither text nor embedding"),
        ("items/remove", {"item_ids": ["nothing", "B0001"]}, "lacks these items"),
        ("items/remove", {"item_ids": [f"B{n:04d}" for n in range(60)]}, "all 60 items"),
        ("items/remove", {"item_ids": []}, "at least 1"),
        ("availability", {"items": [{"item_id": "no", "available": True}]}, "lacks these items"),
        ("availability", {"items": [{"item_id": "B0001", "available": b} for b in (True, False)]},
         "comes twice"),
        ("rollback", {"version": "1"}, "valid integer"),
        ("rollback", {"version": 0}, "greater than or equal"),
    ):  # fmt: skip
        answer = client.post(f"/v1/catalog/{path}", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert detail in answer.json()["detail"], answer.text
    assert client.get("/v1/catalog").json()["version"] == 1
    skip = {"item_ids": ["nothing", "B0001"], "unknown": "skip"}
    assert client.post("/v1/catalog/items/remove", json=skip).json()["removed"] == ["B0001"]


def test_a_full_disk_is_507_and_passes(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {507: StoreFullError("the disk is full; free some"), 500: StoreWriteError("/secret")}
    for status, fault in faults.items():

        def refuse(*_: object, fault: Exception = fault) -> None:
            raise fault

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", refuse)
            answer = client.post("/v1/catalog/items/remove", json={"item_ids": ["B0001"]})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("free some" in answer.text) == (status == 507) and "/secret" not in answer.text
        assert client.get("/v1/catalog").json()["version"] == 1
    assert add(client, "later")["version"] == 2


def test_the_server_gives_the_directory_free_when_it_ends(
    app: FastAPI, recommender: Recommender, tmp_path: Path
) -> None:
    with TestClient(app) as client:
        client.post("/v1/catalog/items/remove", json={"item_ids": ["B0001"]})
    again = open_store(tmp_path / "store", recommender)
    assert again.info.version == 2
    again.close()


def test_requests_that_run_finish_on_their_version(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = app.state.service
    entered, go_on = threading.Event(), threading.Event()
    real = TorchEngine.rank_prompts

    def rank_late(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        go_on.wait(5)
        return real(*args, **kwargs)

    async def test() -> None:
        monkeypatch.setattr(TorchEngine, "rank_prompts", rank_late)
        body = json.dumps({"history": HISTORY, "k": 58}).encode()
        early = Call(app, "/v1/recommendations").send(body)
        await asyncio.to_thread(entered.wait, 5)
        remove = json.dumps({"item_ids": ["B0010", "B0011"]}).encode()
        change = Call(app, "/v1/catalog/items/remove").send(remove)
        await wait_for(lambda: change.status)  # a search that runs holds no change up
        assert change.json()["version"] == service.edition.version == 2
        go_on.set()
        await wait_for(lambda: early.status)
        assert early.json()["version"] == 1
        assert {"B0010", "B0011"} < {item["item_id"] for item in early.json()["items"]}
        late = Call(app, "/v1/recommendations").send(body.replace(b"58", b"56"))
        await wait_for(lambda: late.status)
        assert late.json()["version"] == 2
        assert not {"B0010", "B0011"} & {item["item_id"] for item in late.json()["items"]}

    run_with(app, test)


def test_a_client_that_leaves_does_not_stop_its_change(app: FastAPI) -> None:
    async def test() -> None:
        body = json.dumps({"item_ids": ["B0001"]}).encode()
        call = Call(app, "/v1/catalog/items/remove").send(body)
        call.leave()
        await wait_for(lambda: app.state.service.edition.version == 2)
        await call.task

    run_with(app, test)


def test_too_many_changes_are_turned_away(store: CatalogueStore) -> None:
    go_on = threading.Event()

    def wait() -> Outcome:
        go_on.wait(5)
        return Outcome(1, 60)

    async def test() -> None:
        writer = Writer(store)
        waiting = [asyncio.create_task(writer.change(wait)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="16 changes of the catalogue wait") as refused:
            await writer.change(wait)
        assert refused.value.retry_seconds > 0  # type: ignore[attr-defined]
        go_on.set()
        assert [done.version for done in await asyncio.gather(*waiting)] == [1] * 16
        await writer.change(wait)
        writer.close()

    asyncio.run(test())


def test_the_description_has_the_routes(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = {
        operation["operationId"]
        for path, methods in paths.items()
        if path.startswith("/v1/catalog")
        for operation in methods.values()
    }
    assert names == {
        "read_catalog", "list_catalog_versions", "add_catalog_items", "remove_catalog_items",
        "set_catalog_availability", "roll_back_catalog",
    }  # fmt: skip
    assert "507" in paths["/v1/catalog/items"]["post"]["responses"]

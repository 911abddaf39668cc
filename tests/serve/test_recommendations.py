"""Recommendations over HTTP: the library's answers, per request what it asked for."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from genrec.decode.engine import Search
from genrec.recommender import Recommender
from genrec.serve import recommend_routes
from genrec.serve.app import build_app
from genrec.serve.backend import Edition
from genrec.serve.service import Service
from genrec.types import Filters
from tests.serve.conftest import MakeService

URL = "/v1/recommendations"
NDJSON = {"content-type": "application/x-ndjson"}


def ask(client: TestClient, status: int = 200, /, **body: Any) -> Any:
    answer = client.post(URL, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def list_ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_the_answer_is_the_librarys(client: TestClient, recommender: Recommender) -> None:
    history = list(recommender.item_ids[:3])
    answer = ask(client, history=history, k=5)
    expected = recommender.recommend(history, k=5)
    assert [
        (i["item_id"], i["title"], i["sid"], i["rank"], i["reason"]) for i in answer["items"]
    ] == [(e.item_id, e.title, e.sid, e.rank, None) for e in expected]
    assert [i["score"] for i in answer["items"]] == pytest.approx([e.score for e in expected])
    assert answer["version"] == 1
    assert answer["evaluations"] > 0
    assert {"encode", "queue", "search"} <= set(answer["timings_ms"])


def test_entries_may_be_objects(client: TestClient, recommender: Recommender) -> None:
    plain = ask(client, history=[recommender.item_ids[0]])
    entry = ask(client, history=[{"item_id": recommender.item_ids[0]}])
    assert plain["items"] == entry["items"]


def test_the_search_is_as_told(client: TestClient, recommender: Recommender) -> None:
    history = list(recommender.item_ids[:2])
    for said in (
        {"normalize": "level"},
        {"width": 30, "normalize": "child"},
        {"exact": True, "max_evaluations": 5000},
        {"groups": 2, "diversity": 0.5},
    ):
        answer = ask(client, history=history, k=4, **said)
        expected = recommender.recommend(history, k=4, search=Search(**said))
        assert list_ids(answer) == [e.item_id for e in expected], said
    assert ask(client, history=history, k=4, exact=True)["certified"]


def test_a_search_that_leaves_nothing_unexplored_has_no_bound(
    client: TestClient, recommender: Recommender
) -> None:
    whole = ask(client, history=[recommender.item_ids[0]], k=59, width=60, exact=True)
    assert whole["certified"]
    assert whole["bound"] is None


def test_filters_hold(client: TestClient, recommender: Recommender) -> None:
    ids = recommender.item_ids
    history = [ids[0]]
    assert ids[0] not in list_ids(ask(client, history=history, k=59))
    seen = ask(client, history=history, k=60, filters={"exclude_seen": False})
    assert sorted(list_ids(seen)) == sorted(ids)
    allowed = ask(client, history=history, filters={"allow": list(ids[:4]), "deny": [ids[1]]})
    assert set(list_ids(allowed)) == set(ids[2:4])
    category = next(iter(recommender.catalogue.category_masks))
    found = ask(client, history=history, k=5, filters={"categories": [category.upper()]})
    expected = recommender.recommend(history, k=5, filters=Filters(categories=[category]))
    assert list_ids(found) == [e.item_id for e in expected]


def test_where_nothing_may_be_answered_nothing_is(
    client: TestClient, recommender: Recommender
) -> None:
    first = recommender.item_ids[0]
    answer = ask(client, history=[first], filters={"allow": [first]})
    assert answer["items"] == []
    assert answer["certified"]


def test_unknown_ids_are_named_or_skipped(client: TestClient, recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    problem = ask(client, 422, history=[known, *[f"no{i}" for i in range(7)]])
    assert "has no item 'no0'" in problem["detail"]
    assert "and 2 more" in problem["detail"]
    skipped = ask(client, history=[known, "nope"], unknown="skip")
    assert skipped["items"] == ask(client, history=[known])["items"]
    assert "none of its 1 entries" in ask(client, 422, history=["no"], unknown="skip")["detail"]
    for name in ("allow", "deny"):
        problem = ask(client, 422, history=[known], filters={name: ["nope"]})
        assert "has no item 'nope'" in problem["detail"]
    problem = ask(client, 422, history=[known], filters={"categories": ["nope"]})
    assert "no item has these categories" in problem["detail"]


def test_a_text_needs_an_encoder(
    client: TestClient, make_service: MakeService, recommender: Recommender
) -> None:
    history = [recommender.item_ids[0], {"text": "Red lacquer"}]
    assert (
        "('Red lacquer'), this model's prompts show codes"
        in ask(client, 422, history=history)["detail"]
    )

    class Encoder:
        def encode_texts(self, texts: list[str]) -> list[str]:
            return [recommender.catalogue.sids[5] for _ in texts]

    service = make_service()
    service.encoder = Encoder()
    with TestClient(build_app(service)) as other:
        answer = ask(other, history=history, k=60, filters={"exclude_seen": False})
        assert recommender.item_ids[5] in list_ids(answer)
        assert list_ids(ask(other, history=[{"text": "x"}]))


def test_adapters_and_domains_that_do_not_exist(
    client: TestClient, make_service: MakeService, recommender: Recommender
) -> None:
    known = [recommender.item_ids[0]]
    assert "has no adapters" in ask(client, 422, history=known, adapter="a")["detail"]
    assert "has no domains" in ask(client, 422, history=known, domain="a")["detail"]
    both = ask(client, 422, history=known, domain="a", adapter="b")
    assert "give one of them" in both["detail"]
    with TestClient(build_app(make_service(domains={"games": "g"}))) as other:
        assert "did you mean 'games'" in ask(other, 422, history=known, domain="gams")["detail"]
        assert "adapter='g'" in ask(other, 422, history=known, domain="games")["detail"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"history": ["x"] * 501}, "history: 501 is more than this server's 500"),
        ({"history": [{"text": "x" * 4001}]}, "text: 4,001 is more than"),
        ({"history": [{"text": " \n"}]}, "should match pattern"),
        ({"k": 201}, "k: 201 is more"),
        ({"width": 1001}, "width: 1,001 is more"),
        ({"width": 5}, "width: 5 beams cannot give k=10"),
        ({"exact": True, "max_evaluations": 10_001}, "max_evaluations: 10,001"),
        ({"exact": True, "groups": 2}, "diverse groups has no exact answer"),
        ({"k": 61}, "k=61 answers were asked for, and the catalogue has 60"),
        ({"filters": {"deny": ["x"] * 10_001}}, "filters.deny: 10,001"),
    ],
)
def test_limits_name_value_rule_and_way_out(
    client: TestClient, recommender: Recommender, said: dict[str, Any], words: str
) -> None:
    refused = ask(client, 422, **{"history": [recommender.item_ids[0]], **said})
    assert any(
        words in told for told in [refused["detail"], *(e["rule"] for e in refused["errors"])]
    )


def test_an_edition_is_swapped_for_requests_that_come_after(
    make_service: MakeService, recommender: Recommender
) -> None:
    service = make_service()
    with TestClient(build_app(service)) as client:
        history = [recommender.item_ids[0]]
        before = ask(client, history=history, k=1)
        gone = np.ones(60, dtype=np.bool_)
        gone[recommender.catalogue.rows[list_ids(before)[0]]] = False
        service.replace_edition(Edition(2, recommender, gone))
        after = ask(client, history=history, k=59)
        assert after["version"] == 2
        assert len(after["items"]) == 58
        assert list_ids(before)[0] not in list_ids(after)
        assert "genrec_catalogue_version 2.0" in client.get("/metrics").text


def test_a_batch_holds_answers_and_errors_in_order(
    client: TestClient, recommender: Recommender
) -> None:
    good = {"history": [recommender.item_ids[0]], "k": 2}
    requests = [good, {"history": ["nope"]}, {"wrong": 1}, None, good]
    answer = client.post(f"{URL}/batch", json={"requests": requests})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["index"] for entry in results] == [0, 1, 2, 3, 4]
    assert results[0]["answer"]["items"] == results[4]["answer"]["items"]
    assert results[0]["error"] is None
    assert [entry["error"]["status"] for entry in results[1:4]] == [422, 422, 422]
    assert {fault["where"] for fault in results[2]["error"]["errors"]} == {"history", "wrong"}
    too_many = client.post(f"{URL}/batch", json={"requests": [good] * 257})
    assert too_many.status_code == 422
    assert "257 are more than this server's 256" in too_many.json()["detail"]


def test_a_stream_answers_line_by_line(client: TestClient, recommender: Recommender) -> None:
    ids = recommender.item_ids
    lines = [json.dumps({"history": [item], "k": 1}) for item in ids[:40]]
    lines[7] = '{"history": '
    body = "\n".join([*lines[:20], "", *lines[20:]])
    answer = client.post(f"{URL}/stream", content=body, headers=NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    entries = [json.loads(line) for line in answer.text.splitlines()]
    assert [entry["index"] for entry in entries] == list(range(40))
    assert entries[7]["error"]["status"] == 400
    for row in (0, 39):
        expected = recommender.recommend([ids[row]], k=1)[0].item_id
        assert list_ids(entries[row]["answer"]) == [expected]


def test_a_stream_of_short_lines_costs_little_memory(service: Service) -> None:
    body = b"1\n \r\n" * 50_000
    tracemalloc.start()
    lines = recommend_routes._split_requests(service, recommend_routes.NDJSON, body)
    assert sum(1 for _ in lines) == 50_000
    assert tracemalloc.get_traced_memory()[1] < len(body) / 10
    tracemalloc.stop()


def test_a_stream_takes_a_list_too(client: TestClient, recommender: Recommender) -> None:
    requests = [{"history": [recommender.item_ids[0]], "k": 1}, 3]
    answer = client.post(f"{URL}/stream", json=requests)
    entries = [json.loads(line) for line in answer.text.splitlines()]
    assert entries[0]["answer"]["items"]
    assert entries[1]["error"]["status"] == 422


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        ("", "application/x-ndjson", 422, "holds no request"),
        (" \r\n\n", "application/x-ndjson", 422, "holds no request"),
        ("[]", "application/json", 422, "holds no request"),
        ("{}", "application/json", 422, "no list"),
        ("[", "application/json", 400, "not JSON"),
        ("[" * 100_000, "application/json", 400, "not JSON"),
        ("{}", "text/plain", 415, "neither application/x-ndjson nor"),
        ("[" + " " * (1 << 20) + "]", "application/json", 413, "send application/x-ndjson"),
    ],
)
def test_a_stream_that_is_none(
    client: TestClient, content: str, kind: str, status: int, words: str
) -> None:
    answer = client.post(f"{URL}/stream", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_only_so_many_streams_at_once(make_service: MakeService) -> None:
    service: Service = make_service(max_streams=1)
    with TestClient(build_app(service)) as client, service.hold_stream():
        answer = client.post(f"{URL}/stream", content="{}", headers=NDJSON)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "5"
    with service.hold_stream():  # the one that was refused holds no place
        pass

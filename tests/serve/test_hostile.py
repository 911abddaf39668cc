"""Histories that mean harm: each is answered or refused, none brings the server down."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from genrec.recommender import Recommender
from genrec.serve.app import build_app
from genrec.serve.service import Service
from tests.serve.conftest import MakeService

URL = "/v1/recommendations"
ALLOWED = {200, 400, 413, 422}
PIECES = (
    "<a_12><b_7><c_3>", "<|im_start|>system", "</s>", "[INST]", "{{ 7*7 }}", "{% raw %}",
    "__import__('os')", "\x00", "\x1b[2J", "\u202e", "\ufeff", "\ud800", "\udfff\ud800", "é",
    "e\u0301",
    "漢字", "🏳️‍🌈", "\u0000", "' OR 1=1 --", "../../etc/passwd", "%s%n", "$(reboot)", "\r\nX-A: b",
    "NaN", "null", "-0", "9" * 400, "a" * 513, " ", "\t\n", "\u2028", "ﷺ" * 30, "<user_0>",
)  # fmt: skip


def make_word(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 4)))


def make_entry(rng: random.Random, known: str) -> Any:
    word = make_word(rng)
    return rng.choice(
        (
            known, known, word, {"text": word}, {"text": word[:2000]}, {"item_id": word}, None,
            True,
            rng.randint(-(10**30), 10**30), 1.5, [], {}, [word], {"item_id": known, "text": word},
            {"item_id": known, "x": 1}, {"text": ""}, "",
        )
    )  # fmt: skip


def make_bodies(count: int, item_ids: tuple[str, ...], seed: int) -> Iterator[bytes]:
    """Bodies of which most are wrong in one way or another."""
    rng = random.Random(seed)
    for number in range(count):
        known = rng.choice(item_ids)
        entries = [make_entry(rng, known) for _ in range(rng.choice((0, 1, 1, 2, 3, 40)))]
        body: Any = {"history": entries}
        kind = number % 10
        if kind == 0:
            body["unknown"] = rng.choice(("skip", "error", make_word(rng)))
            body["history"] = [known, *(make_word(rng)[:512] for _ in range(5))]
        elif kind == 1:
            field = rng.choice(("k", "width", "normalize", "exact", "timeout_seconds", "user_id"))
            body["history"] = [known]
            body[field] = rng.choice((0, -1, 10**30, "x", None, 1e308, float("nan"), True, [known]))
        elif kind == 2:
            wrong = [make_entry(rng, known)]
            body["history"] = [known]
            name = rng.choice(("allow", "deny", "categories", "exclude_seen", make_word(rng)))
            body["filters"] = rng.choice(({name: wrong}, {name: known}, wrong, None))
        elif kind == 3:
            body["history"] = [known] * rng.choice((1, 2, 499, 500, 501))
            body["k"] = 1
        elif kind == 4:
            body[make_word(rng)] = make_entry(rng, known)
        elif kind == 5:
            yield b'{"history":' + b"[" * rng.choice((5, 5000)) + b"]" * 5 + b"}"
            continue
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
        whole = text.encode("utf-8", "surrogatepass")
        if kind == 6:
            cut = rng.randint(0, len(whole))
            whole = whole[:cut] + rng.randbytes(rng.randint(0, 3)) + whole[cut + 1 :]
        yield whole


def send_all(client: TestClient, bodies: Iterator[bytes]) -> dict[int, int]:
    """How often each status came back; an answer that is no JSON fails."""
    counts: dict[int, int] = {}
    for body in bodies:
        answer = client.post(URL, content=body, headers={"content-type": "application/json"})
        answer.json()
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        assert answer.status_code in ALLOWED, (answer.status_code, body[:500], answer.text[:500])
    return counts


def stream_all(client: TestClient, bodies: Iterator[bytes]) -> int:
    """How many lines of one stream were answered; each was allowed its status."""
    lines = [body for body in bodies if b"\n" not in body and body.strip()]
    answer = client.post(
        f"{URL}/stream",
        content=b"\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    )
    entries = [json.loads(line) for line in answer.text.split("\n") if line]
    assert len(entries) == len(lines)
    assert {e["error"]["status"] for e in entries if e["error"]} <= ALLOWED
    return len(entries)


class Encoder:
    """Gives texts some code, so that their words reach the prompt."""

    def __init__(self, sid: str) -> None:
        self.sid = sid

    def encode_texts(self, texts: list[str]) -> list[str]:
        return [self.sid for _ in texts]


@pytest.fixture(scope="module")
def talkative(make_service: MakeService, recommender: Recommender) -> Iterator[TestClient]:
    service: Service = make_service()
    service.encoder = Encoder(recommender.catalogue.sids[3])  # type: ignore[assignment]
    with TestClient(build_app(service)) as client:
        yield client


def test_hostile_histories_are_answered_or_refused(
    talkative: TestClient, recommender: Recommender
) -> None:
    counts = send_all(talkative, make_bodies(200, recommender.item_ids, seed=1))
    assert counts[200] > 10
    assert counts[422] > 50


@pytest.mark.slow
def test_ten_thousand_hostile_histories(talkative: TestClient, recommender: Recommender) -> None:
    counts = send_all(talkative, make_bodies(2000, recommender.item_ids, seed=2))
    assert sum(counts.values()) == 2000
    assert counts[200] > 100
    assert stream_all(talkative, make_bodies(8000, recommender.item_ids, seed=5)) > 7000
    assert "genrec_invalid_answers_total 0.0" in talkative.get("/metrics").text


def test_hostile_lines_of_a_stream(talkative: TestClient, recommender: Recommender) -> None:
    assert stream_all(talkative, make_bodies(150, recommender.item_ids, seed=3)) > 100


def test_a_batch_of_hostile_requests(talkative: TestClient, recommender: Recommender) -> None:
    rng = random.Random(4)
    requests = [make_entry(rng, recommender.item_ids[0]) for _ in range(100)]
    answer = talkative.post(f"{URL}/batch", content=json.dumps({"requests": requests}),
                            headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code == 200
    assert {e["error"]["status"] for e in answer.json()["results"]} == {422}

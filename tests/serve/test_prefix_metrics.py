"""Prompts' beginnings that a server keeps: as many as it was told, counted, through hot swaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from genrec.decode.title_engine import TitleEngine
from genrec.errors import RecipeError
from genrec.opening import ModelChoice
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.settings import ServeSettings

HISTORY = [f"B{number:04d}" for number in range(1, 13)]


def read_prefixes(client: TestClient) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    begin = "genrec_prefix_cache_"
    return {s.name.removeprefix(begin): s.value for s in samples if s.name.startswith(begin)}


def ask(client: TestClient, **values: Any) -> list[tuple[str, float]]:
    answer = client.post("/v1/recommendations", json={"history": HISTORY, "k": 5} | values)
    assert answer.status_code == 200, answer.text
    return [(item["item_id"], item["score"]) for item in answer.json()["items"]]


def test_a_known_beginning_is_counted_through_a_change_of_the_catalogue(
    tiny_run: Path, tmp_path: Path
) -> None:
    parts = Parts(ModelChoice(tiny_run / "model", device="cpu"), store=tmp_path / "store")
    service, app = assemble_server(parts, ServeSettings())
    with TestClient(app) as client:
        first = ask(client)
        before = read_prefixes(client)
        assert (before["hits_total"], before["saved_tokens_total"]) == (0, 0)
        assert 0 < before["bytes"] <= ServeSettings().prefix_cache_bytes
        engine = service.edition.recommender.engine
        gone = client.post("/v1/catalog/items/remove", json={"item_ids": [first[0][0]]})
        assert gone.json()["version"] == 2
        assert service.edition.recommender.engine is not engine
        second = ask(client)
        after = read_prefixes(client)
    assert [item for item, _ in second[:4]] == [item for item, _ in first[1:]]
    assert [score for _, score in second[:4]] == pytest.approx([s for _, s in first[1:]], abs=1e-4)
    assert (after["hits_total"], after["misses_total"]) == (1, before["misses_total"])
    assert after["saved_tokens_total"] >= 16 and after["saved_tokens_total"] % 16 == 0
    assert after["bytes"] == before["bytes"]


def test_zero_bytes_keep_nothing(tiny_run: Path) -> None:
    choice = ModelChoice(tiny_run / "model", device="cpu")
    _, app = assemble_server(Parts(choice), ServeSettings(prefix_cache_bytes=0))
    with TestClient(app) as client:
        assert ask(client) == ask(client)
        assert {
            value for name, value in read_prefixes(client).items() if "created" not in name
        } == {0.0}
    with pytest.raises(RecipeError, match="prefix_cache_bytes=-1; use a number above 0, or 0"):
        ServeSettings(prefix_cache_bytes=-1)


def test_an_engine_of_titles_keeps_none(tiny_run: Path) -> None:
    choice = ModelChoice(tiny_run / "model", device="cpu", catalogue=tiny_run / "data")
    service, app = assemble_server(Parts(choice), ServeSettings())
    assert isinstance(service.edition.recommender.engine, TitleEngine)
    with TestClient(app) as client:
        assert ask(client)
        assert read_prefixes(client)["misses_total"] == 0

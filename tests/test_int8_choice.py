"""dtype int8 wherever a dtype can be given: valid answers and a word about them, or a refusal."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from typer.testing import CliRunner

from genrec import cli
from genrec.decode.int8 import Int8Linear
from genrec.decode.vllm_open import list_engine_args
from genrec.errors import RecipeError
from genrec.model_weights import choose_numbers, load_weights
from genrec.opening import ModelChoice
from genrec.recommender import Recommender
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.settings import ServeSettings
from genrec.zero_shot import load_zero_shot

SAID = r"int8: of the top 10 of 32 made-up histories, \d+\.\d% are those of float32, and \d+% of"


def assert_rounded(recommender: Recommender) -> None:
    """The decoder's layers are in 8 bits, and answers are items, once each, without the history."""
    engine = recommender.engine
    model = engine.model
    layers = [each for each in model.get_decoder().modules() if isinstance(each, Int8Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    assert model.dtype == torch.float32
    history = recommender.item_ids[:3]
    answers = [answer.item_id for answer in recommender.recommend(history, k=20)]
    assert len(set(answers)) == 20
    assert set(answers) <= set(recommender.item_ids) - set(history)


def test_a_model_directory_opens_in_int8_and_says_what_that_changes(
    tiny_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened = Recommender.from_pretrained(tiny_run / "model", dtype="int8")
    (record,) = [record for record in caplog.records if "int8" in record.message]
    assert record.name == "genrec.decode.int8"
    assert re.match(SAID, record.message)
    assert_rounded(opened)


def test_a_checkpoint_asked_for_titles_opens_in_int8_too(
    tiny_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened = load_zero_shot(tiny_run / "model", tiny_run / "data", dtype="int8")
    assert "are those of float32" in caplog.text
    assert_rounded(opened)


def test_the_command_answers_in_int8(tiny_run: Path) -> None:
    given = ["recommend", "-m", str(tiny_run / "model"), "B0001", "B0002", "-k", "5"]
    result = CliRunner().invoke(cli.app, [*given, "--dtype", "int8"])
    assert result.exit_code == 0, result.exception
    answers = [item["item_id"] for item in json.loads(result.stdout)["recommendations"]]
    assert len(set(answers)) == 5 and not {"B0001", "B0002"} & set(answers)
    assert "are those of float32" in " ".join(result.stderr.split())
    shown = CliRunner().invoke(cli.app, ["recommend", "--help"], env={"COLUMNS": "200"}).output
    assert "int8 (CPU)" in shown


def test_a_server_answers_in_int8(tiny_run: Path) -> None:
    parts = Parts(ModelChoice(tiny_run / "model", dtype="int8"))
    service, app = assemble_server(parts, ServeSettings())
    assert_rounded(service.edition.recommender)
    body = {"history": ["B0001"] * 12, "k": 59, "width": 60}
    with TestClient(app) as client:
        answers = [client.post("/v1/recommendations", json=body).json() for _ in range(2)]
    known = set(service.edition.recommender.item_ids) - {"B0001"}
    for answer in answers:  # the second goes on from a kept beginning
        assert {item["item_id"] for item in answer["items"]} == known


def test_a_server_of_adapters_refuses_int8(tiny_run: Path) -> None:
    parts = Parts(ModelChoice(tiny_run / "model", dtype="int8"), {"x": tiny_run / "model"})
    with pytest.raises(RecipeError, match="'int8' runs without adapters; use float32 or bfloat16"):
        assemble_server(parts, ServeSettings())


def test_int8_goes_to_the_cpu_and_nowhere_else(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "'int8' runs on CPU, not on cuda:1; use bfloat16 there"
    with pytest.raises(RecipeError, match=refusal):
        load_weights(tiny_run / "model", "cuda:1", "int8")
    with pytest.raises(RecipeError, match=refusal):
        load_zero_shot("no-such-model", tiny_run / "data", device="cuda:1", dtype="int8")
    assert choose_numbers("cpu", None) == ("cpu", torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_numbers(None, "int8") == ("cpu", torch.float32)
    assert choose_numbers(None, None) == ("cuda", torch.bfloat16)
    assert choose_numbers("cuda:1", "float32") == ("cuda:1", torch.float32)


def test_vllm_is_not_asked_for_int8() -> None:
    with pytest.raises(RecipeError, match="dtype 'int8' is for engine torch; leave it out"):
        list_engine_args("model", is_cpu=True, dtype="int8")

"""Reasons for recommended items: which prompt asks for them, and what of a text is shown."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from genrec.errors import ArtifactError, DataError, TemplateError
from genrec.opening import ModelChoice
from genrec.prompts.costs import TokenLimit
from genrec.prompts.explain import (
    EXPLAIN_FILE,
    ExplainPrompt,
    choose_explain,
    load_explain,
    load_shipped_explain,
)
from genrec.prompts.library import build_library
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.step import make_instructions
from genrec.recipe import find_recipe, parse_recipe, read_yaml, strip_header
from genrec.recommender import Recommender
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.backend import DeadlineError, Edition, QueueFullError, TextJob, TextPart
from genrec.serve.explain import explain, find_prompt
from genrec.serve.service import Encoded, Service
from genrec.serve.settings import ServeSettings
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model

SIDS = ["<a_1><b_2>", "<a_3><b_4>", "<a_5><b_6>"]
TITLES = ["Red lamp", "", "Blue chair"]


def make_template(text: str, target: str = " {{ explanation }}", **values: Any) -> Template:
    fields = [
        name for name in ("history", "history_titles", "sid", "title", "user_id") if
        f"{{{{ {name} }}}}" in text
    ]  # fmt: skip
    return Template(
        id="why",
        task="explain-recommendation",
        source="test",
        input=text,
        target=target,
        fields=(*fields, "explanation"),
        **values,
    )


FULL = make_template("{{ history }}|{{ history_titles }}|{{ sid }}|{{ title }}", separator="; ")


def test_a_prompt_shows_history_and_item() -> None:
    prompt = ExplainPrompt(FULL, max_history=2, max_text_characters=8)
    rendered = prompt.render(SIDS, TITLES, "<a_7>", "Green\nhat {{ x }}")
    assert rendered.text == "<a_3><b_4>; <a_5><b_6>|untitled; Blue cha|<a_7>|Green ha"
    shown = [rendered.text[a:b] for a, b in rendered.spans]
    assert shown == ["untitled; Blue cha", "Green ha"], "semantic ids are no data"
    assert prompt.render(SIDS, TITLES, "<a_7>", "").text.endswith("|untitled")
    with pytest.raises(DataError, match="'<b>' is not a semantic id"):
        prompt.render(SIDS, TITLES, "<b>", "")


def test_a_prompt_keeps_to_its_limit_of_tokens() -> None:
    titles = ExplainPrompt(make_template("{{ history_titles }} {{ title }}"), 20, 200)
    assert titles.render(["", ""], ["a" * 30, "b" * 30], "", "hat").text.startswith("aaa")
    tight = ExplainPrompt(titles.template, 20, 200, TokenLimit(12))
    assert tight.render(["", ""], ["a" * 30, "b" * 30], "", "hat").text == "b" * 30 + " hat"


def test_a_prompt_knows_no_user() -> None:
    with pytest.raises(TemplateError, match="knows only history, history_titles, sid, title, not"):
        ExplainPrompt(make_template("{{ user_id }} {{ sid }}"), 20, 200)


@pytest.mark.parametrize("limit", [None, TokenLimit(40)])
def test_a_prompt_comes_back_from_its_file(tmp_path: Path, limit: TokenLimit | None) -> None:
    assert load_explain(tmp_path) is None
    prompt = ExplainPrompt(FULL, 7, 90, limit)
    prompt.save(tmp_path)
    assert load_explain(tmp_path) == prompt
    assert prompt.is_trained


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"schema": 2}', '{"schema": 1, "template": {"id": "x"}}']
)
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / EXPLAIN_FILE).write_text(text)
    with pytest.raises(ArtifactError, match="is no complete explanation prompt"):
        load_explain(tmp_path)


@pytest.fixture(scope="module")
def p5() -> Any:
    values = strip_header(read_yaml(find_recipe("p5", "prompts")))
    return build_library(parse_recipe(PromptsRecipe, values, source="p5"))


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ({}, None),
        ({"p5-explain": 9, "seq": 3}, None),  # it names the user
        ({"p5-explain-past": 5}, "p5-explain-past"),
        ({"p5-explain-past": 5, "why-kind": 90}, "p5-explain-past"),
        ({"why-review": 1, "p5-explain-past": 5}, "why-review"),
        ({"why-review": 1, "why-review-titles": 2}, "why-review-titles"),
        ({"why-brand": 2, "why-kind": 3}, "why-kind"),
    ],
)
def test_the_wording_is_one_that_was_trained_and_fits_any_item(
    p5: Any, rows: dict[str, int], chosen: str | None
) -> None:
    template = choose_explain(p5, rows)
    assert (None if template is None else template.id) == chosen


def test_an_untrained_model_is_asked_in_words() -> None:
    prompt = load_shipped_explain()
    assert not prompt.is_trained
    text = prompt.render(["", ""], ["Red lamp", "Hat"], "", "Blue chair").text
    assert text == "For somebody with Red lamp; Hat at home, what speaks for Blue chair?"


class Scribe:
    """A backend that writes given texts, and notes what it was asked."""

    name, state = "scribe", "ready"
    adapters: tuple[str, ...] = ("beauty",)

    def __init__(self, *texts: str | Exception) -> None:
        self.texts = list(texts)
        self.jobs: list[TextJob] = []
        self.running = self.most = 0

    async def write(self, job: TextJob) -> AsyncGenerator[TextPart]:
        text = self.texts.pop(0)
        self.jobs.append(job)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
            if isinstance(text, Exception):
                raise text
            for word in text.split(" "):
                yield TextPart(f"{word} ", 1)
            yield TextPart("", 1, "stop")
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def explaining(recommender: Recommender) -> Recommender:
    other = copy.copy(recommender)
    other.explain_prompt = ExplainPrompt(
        make_template("{{ history_titles }} {{ sid }} because"), 20, 200
    )
    return other


def ask(recommender: Recommender, backend: Any, n_items: int = 2, seconds: float = 5) -> list[str]:
    edition = Edition(1, recommender)
    service = Service(edition, backend, ServeSettings(max_new_tokens=30))
    catalogue = recommender.catalogue
    history = Encoded((), (5,), (catalogue.sids[5],), (catalogue.titles[5],))
    deadline = time.monotonic() + seconds
    work = explain(service, edition, history, range(n_items), "beauty", deadline)
    return asyncio.run(work)


def test_reasons_come_in_the_items_order_with_titles_for_ids(explaining: Recommender) -> None:
    sids, titles = explaining.catalogue.sids, explaining.catalogue.titles
    backend = Scribe(f"like {sids[5]}, it  shines", f"see {sids[0]} <a_999>.", "")
    reasons = ask(explaining, backend, 3)
    assert reasons == [f"like {titles[5]}, it shines", f"see {titles[0]} .", ""]
    for row, job in enumerate(backend.jobs):
        text = explaining.tokenizer.decode(job.prompt)
        assert sids[row] in text and text.endswith("because")
        assert (job.adapter, job.temperature, job.max_tokens) == ("beauty", 0.0, 30)
        assert job.stop == ("\n",)


def test_few_are_written_at_once_and_a_full_queue_is_waited_for(explaining: Recommender) -> None:
    backend = Scribe(QueueFullError("full", 0.01), *["fine"] * 20)
    assert ask(explaining, backend, 20) == ["fine"] * 20
    assert backend.most == 8
    assert ask(explaining, Scribe(), 0) == []


def test_what_fails_is_said_as_it_is(explaining: Recommender) -> None:
    with pytest.raises(DeadlineError, match="late"):
        ask(explaining, Scribe("fine", DeadlineError("late"), "fine"), 3)
    with pytest.raises(QueueFullError, match="full"):
        ask(explaining, Scribe(QueueFullError("full", 9)), 1, seconds=0.1)


def test_a_model_that_cannot_explain_says_so(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="this model was not trained to give reasons"):
        find_prompt(Edition(1, recommender))


def test_other_items_over_the_same_weights_are_explained_too(explaining: Recommender) -> None:
    trie, index = explaining.engine.trie, explaining.catalogue.index
    assert explaining.replace_items(trie, index).explain_prompt is explaining.explain_prompt


def test_the_route_refuses_what_cannot_be_explained(
    client: TestClient, recommender: Recommender
) -> None:
    values = {"history": [recommender.item_ids[0]], "explain": True}
    answer = client.post("/v1/recommendations", json=values)
    assert answer.status_code == 422
    assert "not trained to give reasons" in answer.json()["detail"]


@pytest.fixture(scope="module")
def reviewed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions with reasons: by brand and kind, since the made data have no reviews."""
    recipe = PromptsRecipe(
        tasks={"sequential": 1, "explain-recommendation": 1},
        templates=("sequential", "explain-recommendation"),
    )
    out = tmp_path_factory.mktemp("reviewed") / "instructions"
    make_instructions(recipe, tiny_run / "data", tiny_run / "tokenizer", out)
    return out


def test_instructions_say_how_their_model_is_asked(reviewed: Path, tiny_run: Path) -> None:
    prompt = load_explain(reviewed)
    assert prompt is not None and prompt.template.task == "explain-recommendation"
    rows = json.loads((reviewed / "manifest.json").read_text())["facts"]["templates"]
    assert rows[prompt.template.id] > 0
    assert not (tiny_run / "instructions" / EXPLAIN_FILE).exists(), "no row gives a reason"


@pytest.mark.slow
def test_a_model_of_such_instructions_explains(
    reviewed: Path, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = TrainRecipe(rank=2, max_steps=2, batch_size=4, eval_every=0.0, precision="fp32")
    parts = (tiny_run / name for name in ("tokenizer", "data"))
    out = tmp_path / "model"
    make_model(recipe, tiny_run / "base", reviewed, *parts, out)
    choice = ModelChoice(out, device="cpu")
    service, app = assemble_server(Parts(choice), ServeSettings(max_new_tokens=5))
    prompt = service.edition.recommender.explain_prompt
    assert prompt == load_explain(reviewed)
    item = service.edition.recommender.item_ids[0]
    with TestClient(app) as client:
        values = {"history": [item], "explain": True, "k": 3}
        answer = client.post("/v1/recommendations", json=values).json()
        plain = client.post("/v1/recommendations", json={**values, "explain": False}).json()
    assert answer["reason_source"] == "trained" and plain["reason_source"] is None
    assert [item["item_id"] for item in answer["items"]] == [i["item_id"] for i in plain["items"]]
    assert all(item["reason"] is None or "\n" not in item["reason"] for item in answer["items"])
    assert "explain" in answer["timings_ms"] and "explain" not in plain["timings_ms"]

"""Cleaning, template rules, and the prompt that training and inference share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ArtifactError, DataError, TemplateError
from genrec.prompts.recipe import Template
from genrec.prompts.render import (
    HistoryPrompt,
    Rendered,
    SidText,
    check_sid,
    clean_text,
    compile_template,
    render_template,
)
from genrec.prompts.sandbox import MARK_END, MARK_START


def make_template(**values: object) -> Template:
    start: dict[str, object] = {
        "id": "t-one",
        "task": "sequential",
        "source": "test",
        "fields": ["history", "sid"],
        "input": "{{ history }} next:",
        "target": "{{ sid }}",
    }
    return Template.model_validate(start | values)


TITLED = make_template(
    fields=["history", "history_titles", "sid"],
    input="{{ history_titles }} = {{ history }}",
    separator="; ",
)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a\r\n b\t\u2028c  ", "a b c"),
        ("a\x00b\x1b[31m", "ab[31m"),
        ("\u202eabc\u202c \u200fx", "abc x"),
        (f"{MARK_START}x{MARK_END}", "x"),
        ("x\ud800y", "xy"),
        ("a\U000e0041b", "ab"),
        ("👩\u200d👧", "👩\u200d👧"),
        (9.5, "9.5"),
        ("", ""),
    ],
)
def test_cleaning(text: object, clean: str) -> None:
    assert clean_text(text, 100) == clean


@settings(max_examples=60, deadline=None)
@given(text=st.text(), most=st.integers(1, 20))
def test_cleaning_is_idempotent_short_and_one_line(text: str, most: int) -> None:
    clean = clean_text(text, most)
    assert clean_text(clean, most) == clean
    assert len(clean) <= most
    assert len(clean.splitlines()) <= 1
    clean.encode()


def test_render_gives_prompt_and_target_with_spans() -> None:
    template = make_template(
        task="sid-to-item", fields=["sid", "title"], input="{{ sid }}?", target=" {{ title }}"
    )
    values = {"sid": SidText("<a_1>"), "title": "Blue\nshoe <a_2>"}
    prompt, target = render_template(template, values, max_text_characters=9)
    assert prompt == Rendered("<a_1>?", ())
    assert target == Rendered(" Blue shoe", ((1, 10),))


def test_a_sid_given_as_plain_text_is_data() -> None:
    values = {"history": "<a_1>", "sid": "<a_2>"}
    prompt, _ = render_template(make_template(), values, max_text_characters=9)
    assert prompt.spans == ((0, 5),)


def test_all_faults_of_a_template_in_one_message() -> None:
    broken = make_template(
        fields=["histroy", "brand"], optional=["title"], recommend=True, target="{{ sid }}."
    )
    with pytest.raises(TemplateError) as caught:
        compile_template(broken, "my.yaml")
    message = str(caught.value)
    assert "template 't-one' (my.yaml): 6 problems" in message
    assert (
        "field 'history' is used but not declared in `fields`; add it, or did you mean" in message
    )
    assert "field 'brand' is declared but never used; remove it" in message
    assert "optional field 'title' is not declared" in message
    assert "a recommend template's target must be '{{ sid }}'" in message


def test_a_reach_for_attributes_names_template_and_file() -> None:
    evil = make_template(input="{{ history.__class__.__init__ }}")
    with pytest.raises(
        TemplateError, match=r"(?s)'t-one' \(e.yaml\).*input: .*__init__.*remove it"
    ):
        compile_template(evil, "e.yaml")


def test_the_same_template_is_parsed_once() -> None:
    assert compile_template(make_template()) is compile_template(make_template())


def test_check_sid() -> None:
    assert isinstance(check_sid("<a_1><b_22>"), SidText)
    for text in ("", "a", "<a_1> ", "<|im_start|>", "<a_1><bb_2>"):
        with pytest.raises(DataError, match="is not a semantic id such as"):
            check_sid(text)


def test_history_drops_the_oldest_first() -> None:
    prompt = HistoryPrompt(make_template(), max_history=2, max_text_characters=50)
    assert prompt.render(["<a_1>", "<a_2>", "<a_3>"]) == Rendered("<a_2><a_3> next:")
    assert prompt.render(["<a_1>"]).text == "<a_1> next:"
    assert not prompt.needs_titles


def test_titles_are_data_in_the_same_order() -> None:
    prompt = HistoryPrompt(TITLED, max_history=2, max_text_characters=6)
    rendered = prompt.render(["<a_1>", "<a_2>", "<a_3>"], ["one", "", "three\n three"])
    assert rendered.text == "untitled; three = <a_2>; <a_3>"
    assert rendered.spans == ((0, 15),)
    assert prompt.needs_titles


def test_bad_histories_are_refused() -> None:
    prompt = HistoryPrompt(TITLED, max_history=2, max_text_characters=6)
    with pytest.raises(DataError, match=r"history is empty.*at least one item"):
        prompt.render([])
    with pytest.raises(DataError, match=r"'t-one' shows titles: 1 are needed.*none were given"):
        prompt.render(["<a_1>"])
    with pytest.raises(DataError, match="2 are needed, one a history item, and 1 were given"):
        prompt.render(["<a_1>", "<a_2>"], ["x"])
    with pytest.raises(DataError, match="is not a semantic id"):
        prompt.render(["i17"], ["x"])


def test_a_prompt_cannot_know_more_than_the_history_and_the_user() -> None:
    wide = make_template(fields=["title", "sid"], input="{{ title }}")
    known = "history, history_titles, user_sid, user_soft"
    with pytest.raises(TemplateError, match=f"knows only {known}, not title"):
        HistoryPrompt(wide, 2, 10)


def test_a_prompt_names_its_user() -> None:
    named = make_template(
        fields=["user_sid", "user_soft", "history", "sid"],
        input="{{ user_sid }}{{ user_soft }}: {{ history }}",
    )
    prompt = HistoryPrompt(named, max_history=2, max_text_characters=6)
    assert prompt.needs_user
    assert prompt.needs_embedding
    rendered = prompt.render(["<a_1>"], user_sid="<ua_3><ub_0>")
    assert rendered.text == "<ua_3><ub_0><|genrec_user|>: <a_1>"
    assert rendered.spans == ()
    with pytest.raises(DataError, match=r"'<a_3>' is not a user's semantic id"):
        prompt.render(["<a_1>"], user_sid="<a_3>")
    with pytest.raises(DataError, match="this user has none in the model"):
        prompt.render(["<a_1>"])


def test_a_prompt_can_do_without_its_user_where_the_template_says_so() -> None:
    shy = make_template(
        fields=["user_sid", "history", "sid"],
        optional=["user_sid"],
        input="{% if user_sid %}{{ user_sid }}: {% endif %}{{ history }}",
    )
    prompt = HistoryPrompt(shy, max_history=2, max_text_characters=6)
    assert prompt.render(["<a_1>"]).text == "<a_1>"
    assert not prompt.needs_embedding


@pytest.mark.parametrize("folder", [True, False])
def test_save_and_load(tmp_path: Path, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "prompt.json"
    prompt = HistoryPrompt(TITLED, max_history=3, max_text_characters=7)
    prompt.save(path)
    loaded = HistoryPrompt.load(path)
    assert loaded == prompt
    assert loaded.render(["<a_1>"], ["x"]) == prompt.render(["<a_1>"], ["x"])


def test_load_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    file = tmp_path / "recommend.json"
    with pytest.raises(ArtifactError, match="does not exist; `genrec prompts` writes it"):
        HistoryPrompt.load(tmp_path)
    file.write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        HistoryPrompt.load(tmp_path)
    file.write_text('{"schema": 9}')
    with pytest.raises(ArtifactError, match="has schema 9, and this genrec reads 1"):
        HistoryPrompt.load(file)
    file.write_text("[]")
    with pytest.raises(ArtifactError, match="has schema None"):
        HistoryPrompt.load(file)
    HistoryPrompt(TITLED, 3, 7).save(file)
    values = json.loads(file.read_text())
    del values["template"]["input"]
    file.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="not a complete recommendation prompt"):
        HistoryPrompt.load(file)
    values["template"]["input"] = "{{ history.x }}"
    file.write_text(json.dumps(values))
    with pytest.raises(TemplateError, match=r"recommend.json"):
        HistoryPrompt.load(file)

"""Templates may hold words, fields, conditions and a few filters; all else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import TemplateError
from genrec.prompts.sandbox import (
    MARK_END,
    MARK_START,
    CleanText,
    SidText,
    _split_marked,
    compile_text,
    find_filtered,
    find_names,
    find_text_faults,
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{{ title.__class__ }}", "attribute or element '__class__'"),
        ("{{ ''.__class__.__mro__ }}", "'__mro__'.*'__class__'"),
        ("{{ title['x'] }}", r"attribute or element '\[...\]'"),
        ("{{ title[1:] }}", "attribute or element"),
        ("{{ title|attr('__class__') }}", "filter 'attr' is not allowed; allowed: capitalize"),
        ("{{ lipsum() }}", "Call expressions are not allowed"),
        ("{% for x in title %}{{ x }}{% endfor %}", "For expressions are not allowed"),
        ("{% set x = 1 %}", "Assign expressions"),
        ("{% include 'x' %}", "Include expressions"),
        ("{% macro m() %}{% endmacro %}", "Macro expressions"),
        ("{{ 'x' * 999999999 }}", "Mul expressions"),
        ("{{ title", "line 1 is not valid Jinja.*correct the syntax"),
        ("a\nb {% if %}", "line 2 is not valid Jinja"),
        (f"a {MARK_START}", "U\\+10FFFC"),
    ],
)
def test_anything_else_is_refused(text: str, fault: str) -> None:
    with pytest.raises(TemplateError, match=rf"(?s)template 'x'.*{fault}"):
        compile_text(text, "template 'x'")


def test_every_fault_of_a_text_is_named() -> None:
    faults = find_text_faults("{{ a.b }} {{ c|tojson }}")
    assert len(faults) == 2
    assert find_text_faults("{{ a|upper }}{% if a == 'x' %}y{% endif %}") == []


def test_data_is_marked_and_semantic_ids_are_not() -> None:
    compiled = compile_text("of {{ title }} {{ sid }}.", "x")
    rendered = compiled.render({"title": CleanText("<a_1>"), "sid": SidText("<a_1>")})
    assert rendered.text == "of <a_1> <a_1>."
    assert rendered.spans == ((3, 8),)


def test_what_a_filter_touched_is_data() -> None:
    rendered = compile_text("{{ sid|lower }}", "x").render({"sid": SidText("<a_1>")})
    assert rendered.spans == ((0, 5),)


def test_a_constant_is_data_too() -> None:
    assert compile_text("{{ '<a_1>' }}", "x").render({}).spans == ((0, 5),)


def test_conditions_see_the_value_itself() -> None:
    compiled = compile_text("{% if brand %}by {{ brand }}{% else %}no brand{% endif %}", "x")
    assert compiled.render({"brand": CleanText("")}).text == "no brand"
    rendered = compiled.render({"brand": CleanText("Acme")})
    assert (rendered.text, rendered.spans) == ("by Acme", ((3, 7),))
    equal = compile_text("{% if brand == 'Acme' and not brand == 'B' %}yes{% endif %}", "x")
    assert equal.render({"brand": CleanText("Acme")}).text == "yes"


def test_expressions_in_data_stay_text() -> None:
    values = {"title": "{{ 7 * 7 }}{% raw %}{# x #}"}
    assert compile_text("<{{ title }}>", "x").render(values).text == "<{{ 7 * 7 }}{% raw %}{# x #}>"


def test_marks_in_data_are_removed() -> None:
    hostile = f"a{MARK_END}<a_1>{MARK_START}b"
    for text in ("{{ title }}", "{{ title|trim }}"):
        rendered = compile_text(text, "x").render({"title": hostile})
        assert (rendered.text, rendered.spans) == ("a<a_1>b", ((0, 7),))


def test_a_missing_value_is_named() -> None:
    with pytest.raises(
        TemplateError, match=r"template 'x': no value for brand, title; .*give them"
    ):
        compile_text("{{ title }} {{ brand }}", "template 'x'").render({"sid": "y"})


def test_an_expression_that_fails_is_named() -> None:
    for text in ("{% if title < 3 %}x{% endif %}", "{{ title|truncate(1, end='......') }}"):
        with pytest.raises(TemplateError, match=r"template 'x': does not render.*correct the"):
            compile_text(text, "template 'x'").render({"title": CleanText("abcdefghijk")})


def test_names_and_filtered_names() -> None:
    text = "{{ a }}{% if b %}{{ c|upper }}{% endif %}"
    assert find_names(text) == {"a", "b", "c"}
    assert find_filtered(text) == {"c"}


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["{{ a }}", "{{ b }}", "{{ sid }}", " x ", "<", "\n"])),
    a=st.text(max_size=8),
    b=st.text(max_size=3),
)
def test_the_quick_way_renders_as_jinja_does(parts: list[str], a: str, b: str) -> None:
    compiled = compile_text("".join(parts), "x")
    assert compiled.parts is not None
    values = {"a": a, "b": CleanText(b.replace(MARK_START, "").replace(MARK_END, ""))}
    values["sid"] = SidText("<a_1>")
    assert compiled.render(values) == _split_marked(compiled.program.render(values))

"""Rendering by column gives what rendering row by row gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import TemplateError
from genrec.prompts.columns import render_column
from genrec.prompts.render import CleanText, SidText, clean_text
from genrec.prompts.sandbox import MARK_START, compile_text

TEXTS = (
    "Chosen: {{ history }} by {{ title }}{{ brand }} now",
    "{{ title }}{{ title }}",
    "{{ history }}",
    "no field",
    "{{ title }}{% if brand %}, {{ brand }}{% endif %}",
    "{{ title|upper }}: {{ history }}",
)
VALUES = st.text(max_size=8).map(lambda text: clean_text(text, 8))
IDS = st.sampled_from([SidText(""), SidText("<a_1><b_2>"), SidText("<a_1>")])


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(IDS, VALUES, VALUES), min_size=1, max_size=5))
def test_columns_equal_rows(rows: list[tuple[str, str, str]]) -> None:
    columns = map(list, zip(*rows, strict=True))
    values = dict(zip(("history", "title", "brand"), columns, strict=True))
    for text in TEXTS:
        compiled = compile_text(text, "test")
        column = render_column(compiled, values, len(rows))
        expected = [
            compiled.render({name: values[name][row] for name in values})
            for row in range(len(rows))
        ]
        assert column.texts.to_pylist() == [one.text for one in expected]
        spans = [[tuple(span) for span in row] for row in column.spans.to_pylist()]
        assert spans == [list(one.spans) for one in expected]


def test_values_of_several_kinds_stay_data() -> None:
    compiled = compile_text("{{ x }}!", "test")
    forged = [SidText("<a_1>"), CleanText("<a_2>"), f"{MARK_START}<a_3>"]
    column = render_column(compiled, {"x": forged}, 3)
    assert column.texts.to_pylist() == ["<a_1>!", "<a_2>!", "<a_3>!"]
    assert column.spans.to_pylist() == [[], [[0, 5]], [[0, 5]]]
    plain = render_column(compiled, {"x": ["<a_4>"] * 2}, 2)
    assert plain.spans.to_pylist() == [[[0, 5]]] * 2


def test_an_expression_that_fails() -> None:
    compiled = compile_text("{{ x|truncate(1) }}", "the label")
    with pytest.raises(TemplateError, match="the label: does not render"):
        render_column(compiled, {"x": [CleanText("long enough")]}, 1)

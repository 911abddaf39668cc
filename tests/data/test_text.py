from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.data.text import (
    clean_series,
    clean_text,
    flatten_path,
    flatten_text,
    parse_price,
    render_fields,
)
from tests.data.made_rows import quick


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Freeman &amp; Sugar", "Freeman & Sugar"),
        ("eForCity&amp;reg;", "eForCity®"),
        ("23&quot; hair", '23" hair'),
        ("a \t b\n\n c\u00a0d", "a b c d"),
        ("nul\x00l\x1b[31mred", "null[31mred"),
        ("left\u202eright\u200b", "leftright"),
        ("zero&#8203;width&#x202e;", "zerowidth"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("<a_12>{{ item }}<|im_end|>", "<a_12>{{ item }}<|im_end|>"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("", ""),
    ],
)
def test_text_is_cleaned(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@quick
@given(st.text())
def test_clean_text_holds_no_control_characters_and_no_runs_of_space(raw: str) -> None:
    clean = clean_text(raw)
    assert clean == " ".join(clean.split())
    assert all(character.isprintable() or ord(character) > 0x9F for character in clean)
    clean.encode()


@quick
@given(st.lists(st.none() | st.text() | st.sampled_from(["a&amp;b", " a", "a\x85b"])))
def test_a_column_is_cleaned_as_its_values_are(texts: list[str | None]) -> None:
    texts = [t.encode(errors="replace").decode() if t is not None else None for t in texts]
    series = pl.Series(texts, dtype=pl.String)
    assert clean_series(series).to_list() == [t if t is None else clean_text(t) for t in texts]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("a", "a"),
        (3, "3"),
        (["a", None, ["b", "c"]], "a, b, c"),
        ({"Brand": "OPI", "Size": [1, 2]}, "Brand: OPI; Size: 1, 2"),
    ],
)
def test_nested_values_become_text(value: object, text: str) -> None:
    assert flatten_text(value) == text


def test_the_longest_category_path_wins_and_the_first_of_equals() -> None:
    paths = [["Beauty"], ["Beauty", "Nails"], ["Health", "Hands"]]
    assert flatten_path(paths) == "Beauty > Nails"
    assert flatten_path(["Beauty", "Nails"]) == "Beauty > Nails"
    assert flatten_path("Beauty") == "Beauty"
    assert flatten_path([]) == flatten_path(None) == ""


@pytest.mark.parametrize(
    ("value", "price"),
    [
        ("$12.99", 12.99),
        ("1,299.00", 1299.0),
        (7, 7.0),
        (7.5, 7.5),
        ("$5.00 - $9.00", None),
        (".a-box-inner{background-color:#fff}", None),
        ("None", None),
        (None, None),
        (True, None),
        ("", None),
    ],
)
def test_prices_are_single_amounts(value: object, price: float | None) -> None:
    assert parse_price(value) == price


def test_fields_render_in_order_without_empty_ones() -> None:
    values = {"title": "Red Shatter", "brand": "", "price": 12.50, "year": None}
    assert render_fields(values, ["price", "brand", "title", "year"]) == (
        "price: 12.5; title: Red Shatter"
    )
    assert render_fields({"title": "one two three"}, ["title"], 9) == "title: one two"
    assert render_fields({}, ["title"]) == ""

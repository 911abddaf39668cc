from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.errors import CapacityError, DataError
from genrec.tokenizers.sid_text import LEVEL_LETTERS, format_sid, format_token, parse_sid


def test_tokens_are_spelled_as_documented() -> None:
    assert format_token(0, 12) == "<a_12>"
    assert format_token(25, 0) == "<z_0>"
    assert format_sid([12, 7, 3, 0]) == "<a_12><b_7><c_3><d_0>"
    assert parse_sid("<a_12><b_7><c_3><d_0>") == (12, 7, 3, 0)


@given(st.lists(st.integers(min_value=0, max_value=65_535), min_size=1, max_size=26))
def test_parsing_undoes_formatting(codes: list[int]) -> None:
    assert parse_sid(format_sid(codes)) == tuple(codes)


@given(st.text(alphabet="<>_abc0123 ", max_size=20))
def test_whatever_parses_is_spelled_one_way_only(text: str) -> None:
    try:
        codes = parse_sid(text)
    except DataError:
        return
    assert format_sid(codes) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "<a_1> <b_2>",
        "<b_1><a_2>",
        "<a_1><a_2>",
        "<a_01>",
        "<a_-1>",
        "<A_1>",
        "<a_1><b_2>\n",
        " <a_1>",
        "<a_١>",
    ],
)
def test_other_text_is_no_semantic_id(text: str) -> None:
    with pytest.raises(DataError, match="is no semantic ID"):
        parse_sid(text)


def test_more_levels_than_letters_are_refused() -> None:
    assert len(LEVEL_LETTERS) == 26
    with pytest.raises(CapacityError, match="27 levels cannot be spelled"):
        format_sid([0] * 27)
    with pytest.raises(CapacityError, match="27 levels cannot be spelled"):
        format_token(26, 0)
    with pytest.raises(CapacityError, match="0 levels"):
        format_sid([])
    too_long = format_sid([0] * 26) + "<a_0>"
    with pytest.raises(DataError, match="is no semantic ID"):
        parse_sid(too_long)


def test_negative_codes_are_refused() -> None:
    with pytest.raises(CapacityError, match="code -1 at level 0 is negative"):
        format_sid([-1])

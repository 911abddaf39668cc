"""Strings are found wherever they begin, and broken up so that they stay readable."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.prompts.hostile import make_breaker, space_characters, space_punctuation


@settings(max_examples=60, deadline=None)
@given(
    strings=st.sets(st.text(alphabet="<ab_>1", min_size=2, max_size=5), max_size=6),
    text=st.text(alphabet="<ab_>1 ", max_size=30),
)
def test_no_string_survives(strings: set[str], text: str) -> None:
    broken = make_breaker(strings).break_text(text)
    assert not [string for string in strings if string in broken]
    assert broken.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("<a_12> shoe", "< a_12> shoe"),
        ("[INST] go [/INST]", "[ INST] go [ /INST]"),
        ("<|assistant|>", "< |assistant|>"),
        ("<<SYS>> x <</SYS>>", "< <SYS>> x < </SYS>>"),
        ("a < b [1] <b>", "a < b [1] <b>"),
        ("", ""),
    ],
)
def test_role_markers_are_broken_up_without_any_vocabulary(text: str, broken: str) -> None:
    assert make_breaker([]).break_text(text) == broken


def test_strings_of_one_character_are_removed() -> None:
    assert make_breaker(["~", "]"]).break_text("a~b]c") == "abc"


def test_a_gap_that_is_a_token_is_not_used() -> None:
    assert make_breaker([" ", "ab"]).break_text("ab ab") == "a_ba_b"


def test_thousands_of_strings_stay_quick() -> None:
    breaker = make_breaker([f"<{level}_{code}>" for level in "abcd" for code in range(2000)])
    text = "Title with <b>markup</b> and no id at all, but <a_2001 is near. " * 20
    started = time.process_time()
    for _ in range(20):
        assert breaker.break_text(text) == text
    assert time.process_time() - started < 0.5  # measured 0.01; a flat alternation takes seconds


def test_softening() -> None:
    assert space_punctuation("<a_1> ok") == "< a _ 1 > ok"
    assert space_characters("ab c") == "a b c"

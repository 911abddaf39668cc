"""Strings in data that a language-model tokenizer would take for more than words.

Owns how such strings are found and broken up: by a gap after their first character, so that they
stay readable. Knows strings only, no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_GAPS = (" ", "_", "-", ".")
_MOST_ROUNDS = 8

# Broken up whatever the vocabulary holds: semantic ids, and role markers that some chat models read
# as plain text (Llama 2's [INST] and <<SYS>>, ChatML's <|im_start|> where it is no token).
_MARKERS = {
    "<": (r"[a-z]{1,2}_\d+>", r"\|[^|<>]{1,60}\|>", r"</?SYS>>", r"/?s>"),
    "[": (r"/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",),
}


@dataclass(frozen=True, slots=True)
class Breaker:
    """Breaks up every occurrence of a set of strings; made by `make_breaker`.

    Attributes:
        beginnings: matches the first character of each occurrence of a longer string.
        singles: matches the strings of one character, which can only be removed.
        gap: what is put after a first character.
    """

    beginnings: re.Pattern[str]
    singles: re.Pattern[str] | None
    gap: str

    def break_text(self, text: str) -> str:
        """The text with no occurrence left; the same text where there was none."""
        for _ in range(_MOST_ROUNDS):
            broken = self.beginnings.sub(rf"\g<0>{self.gap}", text)
            if self.singles is not None:
                broken = self.singles.sub("", broken)
            if broken == text:
                break
            text = broken  # a gap can complete another string, one with a space in it
        return text


def make_breaker(strings: Iterable[str]) -> Breaker:
    """What breaks up the given strings, and role markers and semantic ids in general."""
    known = {text for text in strings if text}
    singles = {text for text in known if len(text) == 1}
    endings: dict[str, list[str]] = {}
    for text in sorted(known - singles):
        endings.setdefault(text[0], []).append(text[1:])
    branches = []
    for first in sorted(endings.keys() | _MARKERS.keys()):
        choices = [*_MARKERS.get(first, ())]
        if first in endings:
            choices.append(_match_any(endings[first]))
        branches.append(f"{re.escape(first)}(?={'|'.join(choices)})")
    gap = next((gap for gap in _GAPS if gap not in singles), "")
    return Breaker(
        beginnings=re.compile("|".join(branches)),
        singles=re.compile(f"[{re.escape(''.join(sorted(singles)))}]") if singles else None,
        gap=gap,
    )


def _match_any(texts: list[str]) -> str:
    """A pattern that matches where any of the sorted texts begins.

    Thousands of ids share their beginnings; one alternative for each would be tried in turn.
    """
    if not texts[0]:
        return ""  # what is already matched is one of the texts, and longer ones need no test
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[0], []).append(text)
    branches = []
    for group in groups.values():
        shared = _find_shared_start(group[0], group[-1])
        branches.append(re.escape(shared) + _match_any([text[len(shared) :] for text in group]))
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _find_shared_start(first: str, last: str) -> str:
    """What all of a sorted list begins with, from its first and last text."""
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:place]
    return min(first, last, key=len)


def space_punctuation(text: str) -> str:
    """The text with every character that is neither letter, digit nor space set apart."""
    return " ".join("".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text).split())


def space_characters(text: str) -> str:
    """The text with every character set apart."""
    return " ".join("".join(text.split()))

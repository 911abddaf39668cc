"""Semantic IDs as text: `<a_12><b_7><c_3><d_0>`, and back.

Owns the spelling of a token. Knows no item, no codebook and no language model.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import polars as pl
from numpy.typing import NDArray

from genrec.errors import CapacityError, DataError

LEVEL_LETTERS = string.ascii_lowercase
USER_PREFIX = "u"
"""Put before a level's letter in a user's ID, `<ua_12>`, so that it is no item's."""
_TOKEN = re.compile(r"<([a-z]?)([a-z])_(0|[1-9][0-9]*)>")


def check_levels(n_levels: int) -> None:
    """Raise unless semantic IDs of that many levels can be spelled.

    Raises:
        CapacityError: no level, or more than there are letters.
    """
    if not 1 <= n_levels <= len(LEVEL_LETTERS):
        raise CapacityError(
            f"a semantic ID of {n_levels} levels cannot be spelled: each level is one letter, so "
            f"there are 1 to {len(LEVEL_LETTERS)}; use fewer levels with more codes each"
        )


def format_token(level: int, code: int, prefix: str = "") -> str:
    """The token of a code at a level, counted from 0: `format_token(1, 7)` is `<b_7>`.

    Args:
        level: from 0.
        code: from 0.
        prefix: empty for items, `USER_PREFIX` for users.

    Raises:
        CapacityError: a level outside the alphabet, or a negative code.
    """
    check_levels(level + 1)
    if code < 0:
        raise CapacityError(f"code {code} at level {level} is negative; codes count from 0")
    return f"<{prefix}{LEVEL_LETTERS[level]}_{code}>"


def format_sid(codes: Sequence[int], prefix: str = "") -> str:
    """The text of a code sequence: `[12, 7]` is `<a_12><b_7>`.

    Raises:
        CapacityError: no code, more codes than letters, or a negative code.
    """
    check_levels(len(codes))
    return "".join(format_token(level, int(code), prefix) for level, code in enumerate(codes))


def format_sids(codes: NDArray[Any], prefix: str = "") -> pl.Series:
    """The texts of many code sequences, as `format_sid` gives each, without a Python string each.

    Shapes:
        codes: (N, L) integers from 0.

    Raises:
        CapacityError: no code, or more codes than letters.
    """
    n_levels = codes.shape[1]
    check_levels(n_levels)
    levels = pl.DataFrame({LEVEL_LETTERS[level]: codes[:, level] for level in range(n_levels)})
    parts = [
        part for name in levels.columns for part in (pl.lit(f"<{prefix}{name}_"), name, pl.lit(">"))
    ]
    return levels.select(sid=pl.concat_str(parts)).to_series()


def parse_sid(text: str, prefix: str = "") -> tuple[int, ...]:
    """The codes that a semantic ID spells; `format_sid` writes exactly this text again.

    Raises:
        DataError: anything but tokens `<a_N><b_N>...` in the alphabet's order.
    """
    codes = []
    end = 0
    for level, match in enumerate(_TOKEN.finditer(text)):
        wanted = (prefix, LEVEL_LETTERS[level]) if level < len(LEVEL_LETTERS) else None
        if match.start() != end or match.group(1, 2) != wanted:
            break
        codes.append(int(match.group(3)))
        end = match.end()
    if end != len(text) or not codes:
        raise DataError(
            f"{text!r} is no semantic ID: it must be tokens like <a_12><b_7><c_3>, one for each "
            f"level from a, with nothing before, between or after"
        )
    return tuple(codes)

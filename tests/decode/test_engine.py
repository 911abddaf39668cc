"""The checks that all engines share; what they refuse is in the engine contract."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request, default_width
from genrec.errors import DataError

LIMITS = EngineLimits(n_items=1000, vocabulary_size=50, max_prompt_tokens=4)


def check(prompts=((1, 2),), k=5, filters=None, **values):
    return check_request(LIMITS, prompts, k, Search(**values), filters)


@pytest.mark.parametrize(
    ("k", "n_items", "width"),
    [(1, 1000, 10), (4, 1000, 10), (5, 1000, 13), (20, 1000, 50), (20, 30, 30), (1, 3, 3)],
)
def test_width_is_two_and_a_half_lists_within_the_catalogue(k, n_items, width):
    assert default_width(k, n_items) == width


def test_a_checked_request_holds_arrays_and_a_width():
    filters = [ItemFilter(np.array([7, 3, 7])), ItemFilter()]
    request = check(prompts=[(1, 2), [3]], filters=filters)
    assert [prompt.tolist() for prompt in request.prompts] == [[1, 2], [3]]
    assert [wanted.excluded.tolist() for wanted in request.filters] == [[3, 7], []]
    assert all(array.dtype == np.int64 for array in request.prompts)
    assert request.width == 13


def test_no_more_beams_than_items():
    assert check(width=5000).width == 1000


def test_overlong_prompts_are_refused_by_name():
    with pytest.raises(DataError, match="prompt 1 has 5 tokens; the model takes 4, so shorten"):
        check(prompts=[(1, 2, 3, 4), (1, 2, 3, 4, 5)])


def test_any_length_goes_where_the_model_sets_no_limit():
    limits = EngineLimits(n_items=10, vocabulary_size=50)
    long = [(1,) * 10_000]
    request = check_request(limits, long, 3, Search(), None)
    assert len(request.prompts[0]) == 10_000

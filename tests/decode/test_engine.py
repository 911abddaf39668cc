"""The checks that all engines share; what they refuse is in the engine contract."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request, default_width
from genrec.errors import CapacityError, DataError, UnknownItemError

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


def test_the_only_items_of_a_filter_are_kept_once_each_and_in_order():
    (wanted,) = check(prompts=[(1,)], k=2, filters=[ItemFilter(only=[9, 4, 9])]).filters
    assert wanted.only.tolist() == [4, 9] and wanted.only.dtype == np.int64


@pytest.mark.parametrize("outside", [1000, -1])
def test_only_items_outside_the_catalogue_are_named(outside):
    filters = [ItemFilter(), ItemFilter(only=np.array([3, outside]))]
    with pytest.raises(UnknownItemError, match=rf"0 to 999.*\n.*prompt 1 allows .* {outside}"):
        check(prompts=[(1,), (2,)], k=1, filters=filters)


@pytest.mark.parametrize(
    ("excluded", "allowed", "n_legal"), [([], None, 3), ([8], None, 2), ([8], [2, 8], 1)]
)
def test_too_few_only_items_are_counted_with_the_other_conditions(excluded, allowed, n_legal):
    mask = None if allowed is None else np.isin(np.arange(1000), allowed)
    wanted = ItemFilter(np.array(excluded, dtype=np.int64), mask, np.array([2, 5, 8]))
    assert check(prompts=[(1,)], k=n_legal, filters=[wanted]).k == n_legal
    rule = rf"k={n_legal + 1} is more .*\n.*has {n_legal} legal items.*only 3 named as allowed"
    with pytest.raises(CapacityError, match=rule):
        check(prompts=[(1,)], k=n_legal + 1, filters=[wanted])
    empty = ItemFilter(only=np.empty(0, dtype=np.int64))
    with pytest.raises(CapacityError, match=r"has 0 legal items.*only 0 named as allowed"):
        check(prompts=[(1,)], k=1, filters=[empty])

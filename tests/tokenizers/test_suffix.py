"""The rule `suffix`: one more level that counts the items of a cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import CapacityError, DataError
from genrec.tokenizers.uniqueness.suffix import append_suffix

SIZES = (3, 4)
RAW = np.array([[0, 1], [2, 3], [0, 1], [0, 1], [2, 3]], dtype=np.int32)


def test_items_of_a_cell_are_counted_in_their_order() -> None:
    result = append_suffix(RAW, SIZES)
    assert result.codes[:, 2].tolist() == [0, 0, 1, 2, 1]
    np.testing.assert_array_equal(result.codes[:, :2], RAW)
    assert result.codebook_sizes == (3, 4, 3)
    assert not result.moved.any()
    assert result.added_distance.tolist() == [0.0] * 5
    assert append_suffix(RAW, SIZES, room=5).codebook_sizes == (3, 4, 8)


def test_new_items_count_on_around_taken_suffixes() -> None:
    taken = np.array([[0, 1, 0], [0, 1, 2], [1, 1, 0], [2, 3, 6]], dtype=np.int32)
    result = append_suffix(RAW, SIZES, taken, suffix_size=7)
    assert result.codes[:, 2].tolist() == [1, 0, 3, 4, 1]
    assert result.codebook_sizes == (3, 4, 7)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_suffixes_are_unique_and_the_lowest_that_are_free(data: st.DataObject) -> None:
    code = st.tuples(st.integers(0, 1), st.integers(0, 1))
    raw = np.array(data.draw(st.lists(code, min_size=1, max_size=20)), dtype=np.int32)
    rows = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 9))
    taken = np.array(data.draw(st.lists(rows, max_size=12, unique=True)), np.int32).reshape(-1, 3)
    result = append_suffix(raw, (2, 2), taken)
    used = set(map(tuple, taken.tolist()))
    for row in result.codes.tolist():
        free = next(i for i in range(100) if (row[0], row[1], i) not in used)
        assert row[2] == free
        used.add(tuple(row))


def test_too_few_suffixes_are_an_error_that_names_the_room() -> None:
    with pytest.raises(
        CapacityError, match=r"codes \(0, 1\) would be number 3 .* 2 suffix codes.*suffix_room"
    ):
        append_suffix(RAW, SIZES, suffix_size=2)
    with pytest.raises(DataError, match="taken codes lie outside the codebooks"):
        append_suffix(RAW, SIZES, np.array([[9, 9, 0]], dtype=np.int32))

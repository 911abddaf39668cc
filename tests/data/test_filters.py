from __future__ import annotations

import logging

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.data.filters import (
    Counts,
    drop_duplicates,
    drop_items,
    drop_low_ratings,
    drop_repeated_pairs,
    keep_core,
    sample_users,
)
from genrec.errors import DataError
from tests.data.made_rows import make_rows, quick

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


def naive_core(pairs: list[tuple[int, int]], k_users: int, k_items: int) -> list[int]:
    """One violation removed at a time, from the front: another order, the same core."""
    kept = list(range(len(pairs)))
    while True:
        users = [pairs[p][0] for p in kept]
        items = [pairs[p][1] for p in kept]
        for place in kept:
            user, item = pairs[place]
            if users.count(user) < k_users or items.count(item) < k_items:
                kept.remove(place)
                break
        else:
            return kept


@quick
@given(PAIRS, st.integers(0, 4), st.integers(0, 4))
def test_core_equals_removal_one_by_one(
    pairs: list[tuple[int, int]], k_users: int, k_items: int
) -> None:
    kept = keep_core(make_rows(pairs), k_users, k_items)
    expected = naive_core(pairs, k_users, k_items)
    assert kept["line"].to_list() == [place + 1 for place in expected]


@quick
@given(PAIRS, st.integers(1, 4))
def test_core_is_a_fixed_point_that_meets_its_limits(pairs: list[tuple[int, int]], k: int) -> None:
    kept = keep_core(make_rows(pairs), k, k)
    assert keep_core(kept, k, k).equals(kept)
    for column in ("user", "item"):
        assert all(n >= k for n in kept[column].value_counts()["count"])


def test_core_needs_several_rounds() -> None:
    # item 3 goes first, then user 1 that lived on it, then item 2 that lived on user 1
    pairs = [(0, 0), (0, 1), (2, 0), (2, 1), (0, 2), (1, 2), (1, 3)]
    assert keep_core(make_rows(pairs), 2, 2)["line"].to_list() == [1, 2, 3, 4]


def test_exact_duplicates_go_and_the_first_stays() -> None:
    rows = make_rows([(0, 0), (0, 0), (0, 0), (1, 0)], timestamp=[5.0, 5.0, 6.0, 5.0])
    assert drop_duplicates(rows)["line"].to_list() == [1, 3, 4]


def test_rows_that_differ_in_their_review_are_no_duplicates() -> None:
    rows = make_rows([(0, 0), (0, 0)], timestamp=[5.0, 5.0], review=[1, 2])
    assert drop_duplicates(rows).height == 2


def test_repeated_pairs_keep_the_earliest() -> None:
    rows = make_rows([(0, 0), (0, 1), (0, 0)], timestamp=[9.0, 5.0, 1.0])
    assert drop_repeated_pairs(rows, ["timestamp", "line"])["line"].to_list() == [2, 3]


def test_low_ratings_go_and_unrated_rows_stay() -> None:
    rows = make_rows([(0, 0), (0, 1), (0, 2)], rating=[3.0, 4.0, None])
    assert drop_low_ratings(rows, 4)["line"].to_list() == [2, 3]
    with pytest.raises(DataError, match="min_rating is 4, but the source has no ratings"):
        drop_low_ratings(rows.drop("rating"), 4)


def test_items_are_dropped_by_place() -> None:
    assert drop_items(make_rows([(0, 0), (0, 1)]), [False, True])["line"].to_list() == [2]


def test_sample_is_seeded_and_independent_of_file_order() -> None:
    ids = [f"u{n:02}" for n in range(20)]
    rows = make_rows([(user, item) for user in range(20) for item in range(3)])
    first = sample_users(rows, 5, ids, seed=1)
    assert first["user"].n_unique() == 5
    assert first.equals(sample_users(rows, 5, ids, seed=1))
    assert set(first["user"]) != set(sample_users(rows, 5, ids, seed=2)["user"])
    turned = sample_users(rows.reverse(), 5, ids, seed=1)
    assert set(turned["user"]) == set(first["user"])
    assert sample_users(rows, 20, ids, seed=1).equals(rows)


def test_counts_are_kept_logged_and_refuse_nothing_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counts = Counts()
    rows = make_rows([(0, 0), (0, 1), (1, 1)])
    counts.record("read", rows)
    counts.record("k_core", rows.head(2))
    assert counts.stages[1] == {"stage": "k_core", "users": 1, "items": 2, "interactions": 2}
    assert "3 interactions" in caplog.text
    assert "(-1)" in caplog.text
    with pytest.raises(DataError, match=r"left after sample \(2 before it\); ask for more"):
        counts.record("sample", rows.filter(pl.lit(False)), "ask for more")

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.data.recipe import DataRecipe
from genrec.data.split import cap_history, mark_split, order_rows
from genrec.errors import DataError
from tests.data.made_rows import make_rows, quick

LAST_OUT = DataRecipe()
TEMPORAL = DataRecipe(split="temporal")
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)


def make_events(events: list[tuple[int, int]]) -> pl.DataFrame:
    times = [float(time) for _, time in events]
    return make_rows([(user, place) for place, (user, _) in enumerate(events)], timestamp=times)


@quick
@given(EVENTS)
def test_order_is_by_user_then_time_then_file(events: list[tuple[int, int]]) -> None:
    ordered = order_rows(make_events(events), "leave-last-out")
    keys = list(ordered.select("user", "timestamp", "line").iter_rows())
    assert keys == sorted(keys)
    for _, rows in ordered.group_by("user"):
        assert rows["position"].to_list() == list(range(rows.height))


@quick
@given(EVENTS)
def test_leave_last_out_holds_for_every_user(events: list[tuple[int, int]]) -> None:
    marked = mark_split(order_rows(make_events(events), LAST_OUT.split), LAST_OUT)
    assert marked.height == len(events)
    for _, rows in marked.group_by("user"):
        n = rows.height
        expected = {1: ["train"], 2: ["train", "test"]}.get(
            n, ["train"] * (n - 2) + ["valid", "test"]
        )
        assert rows["split"].to_list() == expected


def test_ties_keep_file_order_and_a_position_goes_before_time() -> None:
    rows = make_rows([(0, 0), (0, 1), (0, 2)], timestamp=[7.0, 7.0, 1.0])
    assert order_rows(rows, "leave-last-out")["item"].to_list() == [2, 0, 1]
    placed = rows.with_columns(position=pl.Series([3.0, 1.0, 2.0]))
    assert order_rows(placed, "leave-last-out")["item"].to_list() == [1, 2, 0]
    assert order_rows(placed, "temporal")["item"].to_list() == [2, 1, 0]
    assert order_rows(rows.drop("timestamp"), "leave-last-out")["item"].to_list() == [0, 1, 2]


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 500)), min_size=40, max_size=80))
def test_temporal_split_parts_time_for_all_users(events: list[tuple[int, int]]) -> None:
    recipe = DataRecipe(split="temporal", valid_fraction=0.2, test_fraction=0.2)
    try:
        marked = mark_split(order_rows(make_events(events), recipe.split), recipe)
    except DataError:
        return  # so many ties that a part is empty: refused, which the next test matches
    spans = {
        part: (rows["timestamp"].min(), rows["timestamp"].max())
        for (part,), rows in marked.group_by("split")
    }
    assert spans["train"][1] < spans["valid"][0]
    assert spans["valid"][1] < spans["test"][0]
    assert (marked["split"] == "test").sum() >= 0.2 * len(events) - 1


def test_temporal_split_at_given_moments() -> None:
    rows = make_rows([(0, 0), (0, 1), (1, 2)], timestamp=[0.0, 86_400.0, 172_800.0])
    recipe = DataRecipe(split="temporal", valid_from="1970-01-02", test_from=172_800)
    assert mark_split(order_rows(rows, recipe.split), recipe)["split"].to_list() == [
        "train",
        "valid",
        "test",
    ]


def test_temporal_split_says_what_it_lacks() -> None:
    rows = make_rows([(0, 0), (0, 1)])
    with pytest.raises(DataError, match=r"temporal needs timestamps.*leave-last-out"):
        mark_split(rows, TEMPORAL)
    same = rows.with_columns(timestamp=pl.lit(5.0))
    with pytest.raises(DataError, match=r"leaves train and valid empty: .* covers 5 to 5"):
        mark_split(same, TEMPORAL)


@quick
@given(EVENTS, st.integers(1, 4))
def test_history_is_capped_to_the_latest_training_rows(
    events: list[tuple[int, int]], most: int
) -> None:
    marked = mark_split(order_rows(make_events(events), LAST_OUT.split), LAST_OUT)
    capped = cap_history(marked, most)
    for (user,), rows in marked.group_by("user"):
        train = rows.filter(pl.col("split") == "train")["line"].to_list()
        held = rows.filter(pl.col("split") != "train")["line"].to_list()
        mine = capped.filter(pl.col("user") == user)
        assert mine["line"].to_list() == train[-most:] + held
        assert mine["position"].to_list() == list(range(mine.height))
    assert cap_history(marked, None) is marked

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from genrec.errors import DataError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.item_factors import factorise_interactions, read_factors

from .made_data import draw_choices, make_given, write_data

GIVEN = FitInput(("a", "b", "c"))
GOOD = {"a": [1.0, 2.0], "b": [3.0, 4.0], "c": [5.0, 6.0]}


def write_factors(path: Path, ids: list[str], factors: list[Any]) -> Path:
    pl.DataFrame({"item_id": ids, "factors": factors}).write_parquet(path)
    return path


def test_factors_are_put_into_the_items_order(tmp_path: Path) -> None:
    path = write_factors(tmp_path / "f.parquet", ["c", "other", "a", "b"],
                         [GOOD["c"], [9.0, 9.0], GOOD["a"], GOOD["b"]])  # fmt: skip
    factors = read_factors(path, GIVEN)
    np.testing.assert_array_equal(factors, [GOOD["a"], GOOD["b"], GOOD["c"]])
    assert factors.dtype == np.float32
    np.save(tmp_path / "f.npy", factors.astype(np.float64))
    np.testing.assert_array_equal(read_factors(tmp_path / "f.npy", GIVEN), factors)


def test_every_fault_of_the_factors_is_in_one_message(tmp_path: Path) -> None:
    path = write_factors(tmp_path / "f.parquet", ["a", "b", "b"],
                         [[1.0, np.nan], [1.0], [2.0, 3.0, 4.0]])  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_factors(path, GIVEN)
    message = str(caught.value)
    for part in ("1 item ids come more than once", "no factors: 1 items ('c')",
                 "empty, NaN or infinity: 1 items ('a')", "several widths: 2, 3"):  # fmt: skip
        assert part in message


def test_many_items_without_factors_are_named_in_part(tmp_path: Path) -> None:
    given = FitInput(tuple("abcdefgh"))
    path = write_factors(tmp_path / "f.parquet", ["a"], [[1.0]])
    with pytest.raises(DataError, match=r"no factors: 7 items \('b', 'c', 'd', 'e', 'f', \.\.\.\)"):
        read_factors(path, given)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.parquet cannot be read"):
        read_factors(tmp_path / "none.parquet", GIVEN)
    np.save(tmp_path / "pickled.npy", np.array([{}, {}, {}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"pickled\.npy cannot be read"):
        read_factors(tmp_path / "pickled.npy", GIVEN)
    pl.DataFrame({"item": ["a"]}).write_parquet(tmp_path / "names.parquet")
    with pytest.raises(DataError, match="has no column factors and item_id, only item;"):
        read_factors(tmp_path / "names.parquet", GIVEN)
    with pytest.raises(DataError, match="is String, but must be a list of numbers"):
        read_factors(write_factors(tmp_path / "text.parquet", ["a"], ["1 2"]), GIVEN)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 4)), r"has shape \(2, 4\), but must hold one row .* of the 3 items"),
        (np.ones(3), r"has shape \(3,\)"),
        (np.array([[1.0], [np.inf], [2.0]]), r"NaN or infinity: 1 items \('b'\)"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    tmp_path: Path, matrix: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "f.npy", matrix)
    with pytest.raises(DataError, match=message):
        read_factors(tmp_path / "f.npy", GIVEN)


def test_items_chosen_by_the_same_users_get_like_factors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = np.arange(40) % 4
    choices = [*draw_choices(group.tolist()), (0, 40, "test")]
    given = make_given(write_data(tmp_path / "data", 42, choices))
    with caplog.at_level(logging.INFO):
        factors = factorise_interactions(given, 8, seed=0)
    assert factors.shape == (42, 8)
    assert np.isnan(factors[40:]).all()
    assert "2 of 42 items have none and are left out" in caplog.text
    cosines = factors[:40] @ factors[:40].T
    same = group[:, None] == group[None]
    assert cosines[same].mean() > 0.5 > 10 * abs(cosines[~same].mean())


def test_held_out_choices_change_nothing(tmp_path: Path) -> None:
    group = (np.arange(40) % 4).tolist()
    choices = draw_choices(group)
    moved = [(user, 39 if part == "test" else item, part) for user, item, part in choices]
    first, second = (
        factorise_interactions(make_given(write_data(tmp_path / name, 40, rows)), 8, seed=0)
        for name, rows in (("one", choices), ("two", moved))
    )
    np.testing.assert_array_equal(first, second)


def test_factors_follow_selected_items_and_never_outnumber_users(tmp_path: Path) -> None:
    choices = [(0, 0, "train"), (0, 1, "train"), (0, 1, "train"), (1, 2, "train")]
    given = make_given(write_data(tmp_path / "data", 3, choices))
    factors = factorise_interactions(given, 32, seed=0)
    assert factors.shape == (3, 2)
    np.testing.assert_allclose(factors[0], factors[1], atol=1e-6)
    chosen = factorise_interactions(given.select_items(np.array([2, 0])), 32, seed=0)
    np.testing.assert_array_equal(chosen, factors[[2, 0]])


def test_data_without_training_interactions_is_refused(tmp_path: Path) -> None:
    given = make_given(write_data(tmp_path / "data", 3, [(0, 1, "test")]))
    with pytest.raises(DataError, match=r"no training interaction.* give letter\.factors"):
        factorise_interactions(given, 4, seed=0)

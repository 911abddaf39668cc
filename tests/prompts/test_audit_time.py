"""Leaks through time: late training choices, ties across the split, sequences sorted by item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import write_artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.errors import LeakError
from genrec.prompts.audit_time import audit_times
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions

from .conftest import FakeData, WriteTokenizer

Row = tuple[int, int, str, float | None]


def write_rows(out: Path, rows: Sequence[Row], item_ids: Sequence[str], timed: bool = True) -> Path:
    schema = {"user_index": pl.Int64, "item_index": pl.Int64, "split": pl.String,
              "timestamp": pl.Float64}  # fmt: skip
    users = sorted({row[0] for row in rows})
    with write_artifact(out, step="data", recipe=FakeData()) as work:
        pl.DataFrame({"item_index": range(len(item_ids)), "item_id": item_ids}).write_parquet(
            work.path / "items.parquet"
        )
        pl.DataFrame(
            {"user_index": users, "user_id": [f"u{user}" for user in users]}
        ).write_parquet(work.path / "users.parquet")
        table = pl.DataFrame(rows, schema=schema, orient="row")
        (table if timed else table.drop("timestamp")).write_parquet(
            work.path / "interactions.parquet"
        )
    return out


def make_rows(day_of: Sequence[float], n_users: int, order: str, seed: int = 0) -> list[Row]:
    """Each user's six choices, at these times, tied ones in the order asked for."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(n_users):
        items = random.permutation(50)[:6]
        for day in set(day_of):
            tied = [place for place in range(6) if day_of[place] == day]
            chosen = np.sort(items[tied])
            if order == "falling":
                chosen = chosen[::-1]
            if order == "random":
                chosen = random.permutation(chosen)
            items[tied] = chosen
        parts = ["train"] * 4 + ["valid", "test"]
        rows += [(user, int(i), part, float(day))
                 for i, part, day in zip(items, parts, day_of, strict=True)]  # fmt: skip
    return rows


NUMBERED = [str(number) for number in range(50)]
ALIKE = [0.0] * 6
APART = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def load(tmp_path: Path, rows: Sequence[Row], **values: object) -> Dataset:
    item_ids = values.pop("item_ids", NUMBERED)
    return load_dataset(write_rows(tmp_path / "data", rows, item_ids, **values))  # type: ignore[arg-type]


def test_times_in_order(tmp_path: Path) -> None:
    found = audit_times(load(tmp_path, make_rows(APART, 20, "random")), "refuse")
    assert not found.faults and not found.notes
    assert found.facts == {
        "timestamps": True, "users": 20, "users_with_late_training": 0, "users_with_ties": 0,
        "users_with_ties_across_the_split": 0, "undecided_pairs": 0,
        "undecided_pairs_in_item_order": 0,
    }  # fmt: skip


def test_a_training_choice_after_a_held_out_one(tmp_path: Path) -> None:
    rows = make_rows(APART, 20, "random")
    rows[3] = (*rows[3][:3], 9.0)
    found = audit_times(load(tmp_path, rows), "file")
    assert found.faults == [
        "1 users have training choices that are later than a held-out one, such as 'u0' (9 after "
        "4); make the data in the order of time (without `position`, or with one that agrees with "
        "the timestamps)"
    ]


def test_ties_across_the_split_as_declared(tmp_path: Path) -> None:
    rows = make_rows([0.0, 1.0, 2.0, 3.0, 3.0, 4.0], 20, "random")
    dataset = load(tmp_path, rows)
    kept = audit_times(dataset, "file")
    assert not kept.faults and "20 of 20 users have a training and a held-out" in kept.notes[0]
    refused = audit_times(dataset, "refuse")
    assert "20 users have a training and a held-out choice of the same moment" in refused.faults[0]
    assert "ties: refuse; use finer timestamps, or ties=file" in refused.faults[0]


@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("timed", [True, False])
def test_choices_sorted_by_item(tmp_path: Path, order: str, timed: bool) -> None:
    dataset = load(tmp_path, make_rows(ALIKE, 20, order), timed=timed)
    found = audit_times(dataset, "file")
    what = "ties" if timed else "choices"
    assert f"100.0% of 100 neighbouring {what} are in {order} order of item id" in found.faults[0]
    assert "sorted by product code" in found.faults[0] and "ties=by-item" in found.faults[0]
    accepted = audit_times(dataset, "by-item")
    assert not accepted.faults and any("in " + order in note for note in accepted.notes)


def test_the_order_of_ids_is_that_of_texts_where_they_are_no_numbers(tmp_path: Path) -> None:
    codes = [f"B{number:04d}" for number in range(50)]
    found = audit_times(load(tmp_path, make_rows(ALIKE, 20, "rising"), item_ids=codes), "file")
    assert "100.0% of 100" in found.faults[0]
    (tmp_path / "text").mkdir()
    texts = load(tmp_path / "text", make_rows(ALIKE, 20, "rising"), item_ids=[*NUMBERED[:-1], "x"])
    shares = audit_times(texts, "file").facts["undecided_pairs_in_item_order"]
    assert 50 < shares < 90  # '10' comes before '9'


def test_random_and_few_ties_are_fine(tmp_path: Path) -> None:
    found = audit_times(load(tmp_path, make_rows(ALIKE, 40, "random"), timed=False), "file")
    assert not found.faults and not found.notes
    (tmp_path / "few").mkdir()
    few = audit_times(load(tmp_path / "few", make_rows(ALIKE, 3, "rising")), "file")
    assert not few.faults  # fifteen pairs are no proof


def test_half_sorted_ties_are_told(tmp_path: Path) -> None:
    rows = make_rows(ALIKE, 60, "rising")
    for user in range(60):
        rows[6 * user : 6 * user + 2] = rows[6 * user : 6 * user + 2][::-1]
    found = audit_times(load(tmp_path, rows), "file")
    assert not found.faults and "80.0% of 300 neighbouring ties are in rising" in found.notes[1]


def test_the_build_fails_before_anything_is_written(
    tmp_path: Path, recipe: PromptsRecipe, write_tokenizer: WriteTokenizer
) -> None:
    data = write_rows(tmp_path / "data", make_rows(ALIKE, 20, "rising"), NUMBERED)
    tokenizer = write_tokenizer(item_ids=NUMBERED)
    with pytest.raises(LeakError, match="sorted by product code"):
        make_instructions(recipe, data, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    accepted = recipe.model_copy(update={"ties": "by-item"})
    facts = make_instructions(accepted, data, tokenizer, tmp_path / "out").manifest.facts
    assert facts["audit"]["time"]["undecided_pairs"] == 100

"""A bad file: every fault at once, with line numbers, and nothing written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from genrec.data.faults import Faults, shorten
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import DataError
from tests.data.conftest import Write

GOOD = {"user_id": "u", "item_id": "i", "timestamp": 5, "rating": 4}


def fail(tmp_path: Path, path: Path, **values: object) -> str:
    """The message of the failure that this interactions file must cause."""
    out = tmp_path / "out"
    recipe = DataRecipe(**{"source": "table", "interactions": str(path), **values})
    with pytest.raises(DataError) as caught:
        make_data(recipe, out)
    assert not out.exists()
    return str(caught.value)


def test_every_fault_of_a_jsonl_file_comes_at_once(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(
        "log.jsonl",
        [
            GOOD,
            '{"user_id": "u", ',
            GOOD | {"timestamp": "soon"},
            "[1, 2]",
            GOOD | {"rating": "five"},
            GOOD | {"user_id": " "},
            {"user_id": "u", "timestamp": 5},
            GOOD | {"item_id": ["i"]},
            GOOD | {"timestamp": 1_600_000_000_000},
            GOOD | {"timestamp": None},
            GOOD | {"rating": float("nan")},
            GOOD | {"user_id": True},
            GOOD | {"item_id": "a\nb"},
            "9" * 5000,
        ],
    )
    message = fail(tmp_path, path)
    assert "nothing was written" in message
    assert "must be one JSON object: lines 2 (Expecting property name" in message
    assert "4 (it is a list)" in message
    assert "14 (Exceeds the limit" in message
    assert "timestamp must be a number in seconds since 1970" in message
    assert "lines 3 ('soon'), 9 (1600000000000), 10 (None)" in message
    assert "set timestamp_unit" in message
    assert "rating must be a number: lines 5 ('five'), 11 (nan)" in message
    assert "user_id is missing: line 6 (' ')" in message
    assert "item_id is missing: line 7 (None)" in message
    assert "item_id must be text or a number: line 8 (['i'])" in message
    assert "user_id must be text or a number: line 12 (True)" in message
    assert "item_id must hold no control characters: line 13" in message


def test_every_fault_of_a_csv_file_comes_at_once(tmp_path: Path, write_text: Write) -> None:
    path = write_text(
        "log.csv",
        'user_id,item_id,rating\nu,"two\nlines",1\nu,a\nu,a,1,2\n\n,a,1\nu,a,high\nu,"a"b,1\n',
    )
    message = fail(tmp_path, path)
    assert "must have as many fields as there are columns: lines 4 (2 of 3), 5 (4 of 3)" in message
    assert "item_id must hold no control characters: line 2" in message
    assert "user_id is missing: line 7 ('')" in message
    assert "rating must be a number: line 8 ('high')" in message
    assert "must be well-formed CSV: line 9" in message


def test_many_faults_of_one_kind_hide_no_other(tmp_path: Path, write_jsonl: Write) -> None:
    bad = [GOOD | {"rating": "x"}] * 1000 + [GOOD | {"user_id": ""}]
    message = fail(tmp_path, write_jsonl("log.jsonl", bad))
    assert "lines 1 ('x'), 2 ('x'), 3 ('x'), 4 ('x'), 5 ('x') and 995 more" in message
    assert "user_id is missing: line 1001" in message


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_missing_columns_are_named_with_a_suggestion(
    tmp_path: Path, write_text: Write, write_jsonl: Write, name: str
) -> None:
    if name == "log.csv":
        path = write_text(name, "userid,item_id\n1,2\n")
    elif name == "log.jsonl":
        path = write_jsonl(name, [{"userid": 1, "item_id": 2}])
    else:
        import polars as pl

        path = tmp_path / name
        pl.DataFrame({"userid": [1], "item_id": [2]}).write_parquet(path)
    message = fail(tmp_path, path, columns={"rating": "stars"})
    assert "no column 'user_id' for user_id; did you mean 'userid'?" in message
    assert "It has: userid, item_id." in message
    assert "no column 'stars' for rating" in message


def test_faults_of_both_files_come_together(tmp_path: Path, write_jsonl: Write) -> None:
    log = write_jsonl("log.jsonl", [GOOD | {"rating": "x"}])
    items = write_jsonl("items.jsonl", [{"item_id": ""}, "{"])
    message = fail(tmp_path, log, items=str(items))
    assert "3 problems" in message
    assert "log.jsonl: rating must be a number: line 1" in message
    assert "items.jsonl: item_id is missing: line 1" in message
    assert "items.jsonl: must be one JSON object: line 2" in message


def test_files_that_cannot_be_read(tmp_path: Path, write_text: Write) -> None:
    absent = tmp_path / "absent"
    for name in ("absent.jsonl", "absent.csv", "absent.parquet"):
        message = fail(tmp_path, tmp_path / name, items=str(absent.with_suffix(".csv")))
        assert f"{name}: does not exist" in message
        assert "absent.csv: does not exist" in message
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    assert "is a folder; name the file in it" in fail(tmp_path, folder)
    textual = tmp_path / "folder.csv"
    textual.mkdir()
    assert "is a folder; name the file in it" in fail(tmp_path, textual)
    assert "is no Parquet file" in fail(tmp_path, write_text("text.parquet", "user_id,item_id\n"))
    assert "is a zip archive" in fail(tmp_path, write_text("zipped.csv", "PK\x03\x04rest"))
    whole = gzip.compress(b"user_id,item_id\n" + b"u,i\n" * 1000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "is damaged gzip" in fail(tmp_path, tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("text", ["", "user_id,item_id\n", "\n\n"])
def test_empty_files(tmp_path: Path, write_text: Write, text: str) -> None:
    assert "log.csv: holds no rows" in fail(tmp_path, write_text("log.csv", text))
    assert "log.jsonl: holds no rows" in fail(tmp_path, write_text("log.jsonl", "\n"))
    good = write_text("good.csv", "user_id,item_id\nu,i\n")
    items = write_text("items.jsonl", "")
    assert "items.jsonl: holds no rows" in fail(tmp_path, good, items=str(items))


def test_undecodable_bytes_are_named(tmp_path: Path, write_text: Write) -> None:
    path = write_text("log.csv", "user_id,item_id\nu,caf\u00e9\n", "latin-1")
    assert "must be utf-8 text (set `encoding`): line 2" in fail(tmp_path, path)


def test_times_that_only_some_rows_have(
    tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.data.rows.BLOCK_ROWS", 1)
    path = write_jsonl("log.jsonl", [{"user_id": "u", "item_id": "i"}, GOOD])
    assert "has no timestamp in 1 of its 2 rows" in fail(tmp_path, path)


def test_positions_must_be_there(tmp_path: Path, write_text: Write) -> None:
    path = write_text("log.csv", "user_id,item_id,position\nu,a,1\nu,b,\n")
    assert "position is missing: line 3 ('')" in fail(tmp_path, path)


def test_iso_dates_are_checked(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl("log.jsonl", [GOOD | {"timestamp": t} for t in ("2024-05-01", "May", 7)])
    message = fail(tmp_path, path, timestamp_unit="iso")
    assert "ISO date such as 2024-05-01T10:00:00: lines 2 ('May'), 3 (7)" in message


def test_lone_surrogates_are_mended_not_refused(tmp_path: Path, write_text: Write) -> None:
    lines = [f'{{"user_id": "u", "item_id": "{n}", "review_text": "\\ud83d!"}}' for n in "ab"]
    path = write_text("log.jsonl", "\n".join(lines))
    artifact = make_data(DataRecipe(source="table", interactions=str(path)), tmp_path / "out")
    assert artifact.manifest.facts["n_interactions"] == 2


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path, write_text: Write) -> None:
    path = write_text("log.csv", "\ufeffuser_id,item_id\nu,a\nu,b\n")
    make_data(DataRecipe(source="table", interactions=str(path)), tmp_path / "out")


def test_values_in_messages_are_short_and_file_faults_come_once() -> None:
    assert len(shorten("x" * 1000)) == 60
    faults = Faults(Path("f"))
    assert not faults
    faults.add_file("gone")
    faults.add_file("gone")
    faults.add_lines("rule", [])
    assert faults.problems() == ["f: gone"]


def test_a_column_that_is_missing_stops_the_reading_of_a_long_file(
    tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.data.rows.BLOCK_ROWS", 2)
    path = write_jsonl("log.jsonl", [{"user_id": "u"}] * 3 + ["{"])
    message = fail(tmp_path, path)
    assert "no column 'item_id'" in message
    assert "line" not in message


def test_amazon_lines_that_are_no_object(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl("log.json", ["[1]", "{1, 2}"])
    message = fail(tmp_path, path, source="amazon2014")
    assert "JSON object or Python literal: lines 1 (it is a list), 2 (it is a set)" in message


def test_a_file_that_may_not_be_read(
    tmp_path: Path, write_text: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_text("log.csv", "user_id,item_id\nu,i\n")
    monkeypatch.setattr(Path, "open", refuse)
    assert "log.csv: cannot be read (Permission denied)" in fail(tmp_path, path)

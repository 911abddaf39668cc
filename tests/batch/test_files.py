"""Files of users in, files of answers out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from genrec.batch import answers as answers_module
from genrec.batch.answers import JsonlWriter, ParquetWriter, open_writer
from genrec.batch.histories import parse_histories, stream_histories
from genrec.errors import DataError
from genrec.types import History, Recommendation

ANSWERS = [Recommendation("i2", 1, -0.5, "Tent", "<a_1>"), Recommendation("i3", 2, -0.7)]


def read_all(path: Path) -> list[History]:
    return list(stream_histories(path))


def test_json_lines_with_and_without_user(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"user_id": "u", "history": ["a", 7]}\n\n["b"]\n')
    assert read_all(path) == [History("u", ("a", "7")), History("3", ("b",))]


def test_all_faulty_lines_are_reported() -> None:
    lines = ["{", '{"user_id": "u"}', '{"history": []}', '{"history": ["a"]}', "7"]
    with pytest.raises(DataError) as caught:
        list(parse_histories(lines, source="standard input"))
    message = str(caught.value)
    assert message.startswith("standard input: 4 problems")
    assert "line 1: not JSON" in message
    assert "line 2: needs a list of item ids" in message
    assert "line 3: the history is empty" in message
    assert "line 5: needs a list" in message


def test_no_line_is_a_fault() -> None:
    with pytest.raises(DataError, match="holds no history"):
        list(parse_histories(["", "\n"], source="x"))


def test_tables_of_lists_and_of_rows(tmp_path: Path) -> None:
    lists = tmp_path / "lists.parquet"
    pl.DataFrame({"user_id": ["u"], "history": [["a", "b"]]}).write_parquet(lists)
    assert read_all(lists) == [History("u", ("a", "b"))]
    rows = pl.DataFrame({"user_id": ["u", "v", "u"], "item_id": ["a", "c", "b"]})
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        assert read_all(tmp_path / name) == [History("u", ("a", "b")), History("v", ("c",))]


def test_faulty_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; check --input"):
        read_all(tmp_path / "none.jsonl")
    (tmp_path / "users.xlsx").write_text("")
    with pytest.raises(DataError, match=r"suffix '.xlsx'; use .jsonl, .parquet or .csv"):
        read_all(tmp_path / "users.xlsx")
    pl.DataFrame({"user": ["u"]}).write_csv(tmp_path / "users.csv")
    with pytest.raises(DataError, match="it needs user_id and item_id"):
        read_all(tmp_path / "users.csv")
    empty = {"user_id": ["u", "v"], "history": [["a"], []]}
    pl.DataFrame(empty).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="users without history: v"):
        read_all(tmp_path / "users.parquet")
    pl.DataFrame(empty).clear().write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_all(tmp_path / "users.parquet")


def test_json_lines_out() -> None:
    stream = io.StringIO()
    JsonlWriter(stream).write("u", ANSWERS)
    line = json.loads(stream.getvalue())
    assert line["user_id"] == "u"
    assert [item["item_id"] for item in line["recommendations"]] == ["i2", "i3"]


def test_parquet_out_appears_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "ROWS_A_GROUP", 2)
    path = tmp_path / "answers" / "a.parquet"
    with open_writer("parquet", path) as writer:
        assert isinstance(writer, ParquetWriter)
        writer.write("u", ANSWERS)
        writer.write("v", ANSWERS[:1])
        assert not path.exists()
    frame = pl.read_parquet(path)
    assert frame["user_id"].to_list() == ["u", "u", "v"]
    assert frame["rank"].to_list() == [1, 2, 1]


def test_the_writer_is_chosen_by_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_writer("jsonl", tmp_path / "a" / "b.jsonl") as writer:
        writer.write("u", ANSWERS)
    assert len((tmp_path / "a" / "b.jsonl").read_text().splitlines()) == 1
    with open_writer("jsonl", None) as writer:
        writer.write("u", ANSWERS)
    assert '"user_id": "u"' in capsys.readouterr().out


def test_ids_in_a_csv_are_names_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("user_id,item_id\n01,007\n01,1e3\n")
    assert read_all(path) == [History("01", ("007", "1e3"))]


def test_a_table_without_users_or_lists_is_explained(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u"], "items": [["a"]]}).write_parquet(tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r"columns \['user_id', 'items'\]; it needs user_id and"):
        read_all(tmp_path / "u.parquet")


def test_histories_stream_and_a_flood_of_faults_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse_histories(iter(['["a"]', "{", '["b"]']), source="x")
    assert next(found).item_ids == ("a",)
    assert next(found).item_ids == ("b",)
    with pytest.raises(DataError, match="line 2: not JSON"):
        next(found)
    monkeypatch.setattr("genrec.batch.histories._MOST_PROBLEMS", 2)
    with pytest.raises(DataError, match="2 problems"):
        list(parse_histories(["{"] * 10, source="x"))


def test_nesting_without_end_is_a_faulty_line() -> None:
    with pytest.raises(DataError, match="line 1: "):
        list(parse_histories(["[" * 200_000], source="x"))

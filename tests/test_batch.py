"""Files of users in, files of answers out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from genrec import batch
from genrec.batch import JsonlWriter, ParquetWriter, open_writer, parse_histories, read_histories
from genrec.errors import DataError
from genrec.types import History, Recommendation

ANSWERS = [Recommendation("i2", 1, -0.5, "Tent", "<a_1>"), Recommendation("i3", 2, -0.7)]


def test_json_lines_with_and_without_user(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"user_id": "u", "history": ["a", 7]}\n\n["b"]\n')
    assert read_histories(path) == [History("u", ("a", "7")), History("3", ("b",))]


def test_all_faulty_lines_are_reported() -> None:
    lines = ["{", '{"user_id": "u"}', '{"history": []}', '{"history": ["a"]}', "7"]
    with pytest.raises(DataError) as caught:
        parse_histories(lines, source="standard input")
    message = str(caught.value)
    assert message.startswith("standard input: 4 problems")
    assert "line 1: not JSON" in message
    assert "line 2: needs a list of item ids" in message
    assert "line 3: the history is empty" in message
    assert "line 5: needs a list" in message


def test_no_line_is_a_fault() -> None:
    with pytest.raises(DataError, match="holds no history"):
        parse_histories(["", "\n"], source="x")


def test_tables_of_lists_and_of_rows(tmp_path: Path) -> None:
    lists = tmp_path / "lists.parquet"
    pl.DataFrame({"user_id": ["u"], "history": [["a", "b"]]}).write_parquet(lists)
    assert read_histories(lists) == [History("u", ("a", "b"))]
    rows = pl.DataFrame({"user_id": ["u", "v", "u"], "item_id": ["a", "c", "b"]})
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        assert read_histories(tmp_path / name) == [History("u", ("a", "b")), History("v", ("c",))]


def test_faulty_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; check --input"):
        read_histories(tmp_path / "none.jsonl")
    (tmp_path / "users.xlsx").write_text("")
    with pytest.raises(DataError, match=r"suffix '.xlsx'; use .jsonl, .parquet or .csv"):
        read_histories(tmp_path / "users.xlsx")
    pl.DataFrame({"user": ["u"]}).write_csv(tmp_path / "users.csv")
    with pytest.raises(DataError, match="it needs user_id and item_id"):
        read_histories(tmp_path / "users.csv")
    empty = {"user_id": ["u", "v"], "history": [["a"], []]}
    pl.DataFrame(empty).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="users without history: v"):
        read_histories(tmp_path / "users.parquet")
    pl.DataFrame(empty).clear().write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_histories(tmp_path / "users.parquet")


def test_json_lines_out() -> None:
    stream = io.StringIO()
    JsonlWriter(stream).write("u", ANSWERS)
    line = json.loads(stream.getvalue())
    assert line["user_id"] == "u"
    assert [item["item_id"] for item in line["recommendations"]] == ["i2", "i3"]


def test_parquet_out_appears_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "ROWS_A_GROUP", 2)
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

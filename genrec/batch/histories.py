"""Files of users with their histories.

Owns the formats of `genrec recommend`'s input. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from genrec.errors import DataError, join_problems
from genrec.types import History

_LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
_ROWS_AT_ONCE = 10_000
_MOST_PROBLEMS = 1000


def check_source(path: Path) -> None:
    """Refuse a file of users that is not there, or of no known kind.

    Raises:
        DataError: either.
    """
    if not path.is_file():
        raise DataError(f"file of users {path} does not exist; check --input")
    if path.suffix not in (*_LINE_SUFFIXES, ".parquet", ".csv"):
        raise DataError(
            f"file of users {path} has the suffix {path.suffix!r}; use .jsonl, .parquet or .csv"
        )


def stream_histories(path: Path) -> Iterator[History]:
    """The histories in a file of users, one by one.

    JSON lines and Parquet with lists are never held whole; a file with one row an interaction is,
    since a user's rows may lie anywhere in it.

    Args:
        path: JSONL with `{"user_id": ..., "history": [...]}` a line (or a bare list of ids), or
            Parquet or CSV with `user_id` and either a list column `history` or one `item_id` a row,
            oldest first.

    Raises:
        DataError: missing file, unknown suffix, or faulty lines: all of them in one message, after
            the last history.
    """
    check_source(path)
    if path.suffix in _LINE_SUFFIXES:
        with path.open(encoding="utf-8") as stream:
            yield from parse_histories(stream, source=str(path))
    else:
        yield from _check_users(_stream_table(path), path)


def parse_histories(lines: Iterable[str], *, source: str) -> Iterator[History]:
    """The histories in JSON lines, one by one.

    Raises:
        DataError: lines that are not a history, all in one message with their numbers; no line.
    """
    problems: list[str] = []
    n_found = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            history = _parse_history(json.loads(line), number)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")
        except (DataError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
        else:
            n_found += 1
            yield history
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError(join_problems(source, problems))
    if not n_found:
        raise DataError(f"{source} holds no history; one JSON object a line is expected")


def _parse_history(value: Any, number: int) -> History:
    if isinstance(value, list):
        value = {"history": value}
    if not isinstance(value, dict) or not isinstance(value.get("history"), list):
        raise DataError('needs a list of item ids, as {"user_id": "u1", "history": ["i1", "i2"]}')
    if not value["history"]:
        raise DataError("the history is empty; leave the user out, or give at least one item id")
    return History(str(value.get("user_id", number)), tuple(str(i) for i in value["history"]))


def _stream_table(path: Path) -> Iterator[tuple[Any, Sequence[Any] | None]]:
    """Each user with the history's item ids."""
    columns: Sequence[str]
    if path.suffix == ".parquet":
        columns = pq.read_schema(path).names
        if "user_id" in columns and "history" in columns:
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=["user_id", "history"]):
                    yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
            return
        frame = pl.scan_parquet(path)
    else:
        # As text: ids such as 007 are names, not numbers.
        frame = pl.scan_csv(path, infer_schema=False)
        columns = frame.collect_schema().names()
    if not {"user_id", "item_id"} <= set(columns):
        raise DataError(
            f"{path} has the columns {list(columns)}; it needs user_id and item_id "
            f"(one row an interaction, oldest first), or in Parquet user_id and a list `history`"
        )
    chosen = frame.select("user_id", "item_id")
    grouped = chosen.group_by("user_id", maintain_order=True).agg("item_id").collect()
    yield from grouped.iter_rows()


def _check_users(rows: Iterator[tuple[Any, Sequence[Any] | None]], path: Path) -> Iterator[History]:
    empty = []
    n_found = 0
    for user, items in rows:
        n_found += 1
        if items:
            yield History(str(user), tuple(str(item) for item in items))
        else:
            empty.append(str(user))
    if empty or not n_found:
        what = f"users without history: {', '.join(empty[:5])}" if empty else "no rows"
        raise DataError(f"{path} has {what}; every user needs at least one item id")

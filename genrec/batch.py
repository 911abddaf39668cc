"""Histories of many users in, their recommendations out, as files or streams.

Owns the file formats of `genrec recommend`. Knows no model: a recommender
is handed in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.errors import DataError, join_problems
from genrec.progress import show_progress
from genrec.types import History, Recommendation

if TYPE_CHECKING:  # a recommender is handed in; importing it would load torch
    from genrec.recommender import Recommender

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("title", pa.string()),
        ("sid", pa.string()),
    ]
)


ROWS_A_GROUP = 50_000


class AnswerWriter(Protocol):
    """Where answers go, user by user."""

    def write(self, user_id: str, answers: Sequence[Recommendation]) -> None:
        """Take one user's answers, best first."""
        ...


class Request(NamedTuple):
    """What is asked for every user; the names are those of `Recommender.recommend`."""

    k: int = 10
    exclude_seen: bool = True
    unknown: Literal["error", "skip"] = "error"


def read_histories(path: Path) -> list[History]:
    """The histories in a file of users.

    Args:
        path: JSONL with `{"user_id": ..., "history": [...]}` a line (or a bare list of ids), or
            Parquet or CSV with `user_id` and either a list column `history` or one `item_id` a row,
            oldest first.

    Raises:
        DataError: missing file, unknown suffix, or faulty lines: all of them in one message.
    """
    if not path.is_file():
        raise DataError(f"file of users {path} does not exist; check --input")
    if path.suffix in {".jsonl", ".ndjson", ".json"}:
        with path.open(encoding="utf-8") as stream:
            return parse_histories(stream, source=str(path))
    if path.suffix in {".parquet", ".csv"}:
        return _read_table(path)
    raise DataError(
        f"file of users {path} has the suffix {path.suffix!r}; use .jsonl, .parquet or .csv"
    )


def parse_histories(lines: Iterable[str], *, source: str) -> list[History]:
    """The histories in JSON lines.

    Raises:
        DataError: lines that are not a history, all in one message with their numbers; no line.
    """
    histories: list[History] = []
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            histories.append(_parse_history(json.loads(line), number))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")
        except DataError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DataError(join_problems(source, problems))
    if not histories:
        raise DataError(f"{source} holds no history; one JSON object a line is expected")
    return histories


def _parse_history(value: Any, number: int) -> History:
    if isinstance(value, list):
        value = {"history": value}
    if not isinstance(value, dict) or not isinstance(value.get("history"), list):
        raise DataError('needs a list of item ids, as {"user_id": "u1", "history": ["i1", "i2"]}')
    if not value["history"]:
        raise DataError("the history is empty; leave the user out, or give at least one item id")
    return History(str(value.get("user_id", number)), tuple(str(i) for i in value["history"]))


def _read_table(path: Path) -> list[History]:
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    if "user_id" in frame.columns and "history" in frame.columns and path.suffix == ".parquet":
        rows = frame.select("user_id", "history").rows()
    elif {"user_id", "item_id"} <= set(frame.columns):
        grouped = frame.group_by("user_id", maintain_order=True).agg(pl.col("item_id"))
        rows = grouped.rows()
    else:
        raise DataError(
            f"{path} has the columns {frame.columns}; it needs user_id and item_id "
            f"(one row an interaction, oldest first), or in Parquet user_id and a list `history`"
        )
    histories = [History(str(user), tuple(str(i) for i in items or ())) for user, items in rows]
    empty = [history.user_id for history in histories if not history.item_ids]
    if empty or not histories:
        what = f"users without history: {', '.join(empty[:5])}" if empty else "no rows"
        raise DataError(f"{path} has {what}; every user needs at least one item id")
    return histories


class JsonlWriter:
    """Answers as one JSON object a user."""

    def __init__(self, stream: IO[str]) -> None:
        """Write to an open text stream, which stays the caller's to close."""
        self._stream = stream

    def write(self, user_id: str, answers: Sequence[Recommendation]) -> None:
        """Write one line, and hand it on at once."""
        items = [
            {"rank": a.rank, "item_id": a.item_id, "score": a.score, "title": a.title, "sid": a.sid}
            for a in answers
        ]
        line = {"user_id": user_id, "recommendations": items}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()


class ParquetWriter:
    """Answers as one row a recommendation; the file appears when it is complete."""

    def __init__(self, path: Path) -> None:
        """Write beside `path` first, so that a killed run leaves no half file under its name."""
        self._path = path
        self._part = path.with_name(path.name + ".tmp")
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._part, SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def write(self, user_id: str, answers: Sequence[Recommendation]) -> None:
        """Keep the answers until a row group is full."""
        self._rows.extend(
            {
                "user_id": user_id,
                "rank": a.rank,
                "item_id": a.item_id,
                "score": a.score,
                "title": a.title,
                "sid": a.sid,
            }
            for a in answers
        )
        if len(self._rows) >= ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Write what is left and give the file its name."""
        self._flush()
        self._writer.close()
        self._part.replace(self._path)


@contextmanager
def open_writer(form: str, output: Path | None) -> Iterator[AnswerWriter]:
    """A writer of that form, closed well when the block ends well.

    Args:
        form: `jsonl` or `parquet`.
        output: the file; None writes JSON lines to standard output.
    """
    if form == "parquet" and output is not None:
        writer = ParquetWriter(output)
        yield writer
        writer.close()
    elif output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf-8") as stream:
            yield JsonlWriter(stream)
    else:
        yield JsonlWriter(sys.stdout)


def answer_histories(
    recommender: Recommender, histories: Sequence[History], request: Request
) -> Iterator[tuple[History, list[str], list[Recommendation]]]:
    """Each history with the titles of its items and its answers."""
    for history in histories:
        answers = recommender.recommend(
            history.item_ids, request.k, request.exclude_seen, request.unknown, history.user_id
        )
        yield history, recommender.find_titles(history.item_ids), answers


def write_answers(
    recommender: Recommender,
    histories: Sequence[History],
    request: Request,
    writer: AnswerWriter,
    batch_size: int,
) -> None:
    """Answer all histories in batches, handing each answer to the writer as it comes."""
    with show_progress("recommending", len(histories), unit="users") as advance:
        for start in range(0, len(histories), batch_size):
            batch = histories[start : start + batch_size]
            answers = recommender.recommend_batch(
                [history.item_ids for history in batch],
                request.k,
                request.exclude_seen,
                request.unknown,
                [history.user_id for history in batch],
            )
            for history, items in zip(batch, answers, strict=True):
                writer.write(history.user_id, items)
            advance(len(batch))


def recommend_samples(
    run: Path, *, users: int = 3, k: int = 5
) -> list[tuple[History, list[str], list[Recommendation]]]:
    """For the first test users of a finished run: history, its titles, recommendations."""
    from genrec.data.dataset import load_dataset  # noqa: PLC0415
    from genrec.recommender import Recommender  # noqa: PLC0415

    dataset = load_dataset(run / "data")
    holdout = dataset.holdout("test")
    user_ids = dataset.users.sort("user_index")["user_id"].to_list()
    histories = [
        History(user_ids[user], tuple(dataset.item_ids[item] for item in items))
        for user, items in zip(holdout.user_index[:users], holdout.histories[:users], strict=True)
    ]
    recommender = Recommender.from_pretrained(run / "model")
    return list(answer_histories(recommender, histories, Request(k=k)))

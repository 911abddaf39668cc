"""Answers as files and lines.

Owns the formats of `genrec recommend`'s output. Knows no model and no history.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.types import Recommendation

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

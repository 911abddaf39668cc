"""A long run of recommendations that can be killed and goes on.

Owns the folder beside the output, `OUTPUT.parts`: the users cut into shards, the answers of each
shard as it is done, and what they are answers to. A shard's answers appear under their name when
they are complete and on disk, so a killed run neither repeats nor loses a user. Knows no model.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.batch.answers import open_writer
from genrec.errors import DataError, join_problems
from genrec.manifest import read_json, write_json
from genrec.types import History, Recommendation

SHARD_SCHEMA = pa.schema([("user_id", pa.string()), ("history", pa.list_(pa.string()))])
PART_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        (
            "recommendations",
            pa.list_(
                pa.struct(
                    [
                        ("item_id", pa.string()),
                        ("rank", pa.int32()),
                        ("score", pa.float32()),
                        ("title", pa.string()),
                        ("sid", pa.string()),
                    ]
                )
            ),
        ),
    ]
)
_JOB_FILE = "job.json"
_log = logging.getLogger(__name__)
Check = Callable[[History], str | None]


@dataclass(frozen=True, slots=True)
class BatchJob:
    """An open job folder.

    Attributes:
        output: where the answers of all users go.
        folder: the shards and parts.
        sizes: how many users each shard has.
    """

    output: Path
    folder: Path
    sizes: tuple[int, ...]

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return sum(self.sizes)

    @property
    def open_shards(self) -> list[int]:
        """The shards without answers."""
        return [n for n in range(len(self.sizes)) if not self.part_path(n).is_file()]

    def shard_path(self, shard: int) -> Path:
        """The file of a shard's users."""
        return self.folder / f"users-{shard:06d}.parquet"

    def part_path(self, shard: int) -> Path:
        """The file of a shard's answers."""
        return self.folder / f"answers-{shard:06d}.parquet"

    def write_part(self, shard: int, part: pa.Table) -> None:
        """Keep a shard's answers; they are on disk when this returns."""
        _write_table(part, self.part_path(shard))

    def write_output(self, form: str) -> None:
        """Write all users' answers in the input's order, and remove the folder.

        Args:
            form: `jsonl` or `parquet`.
        """
        whole = self.folder / f"whole{self.output.suffix}"
        with open_writer(form, whole) as writer:
            for shard in range(len(self.sizes)):
                for row in pq.read_table(self.part_path(shard)).to_pylist():
                    answers = [Recommendation(**answer) for answer in row["recommendations"]]
                    writer.write(row["user_id"], answers)
        with whole.open("rb") as stream:
            os.fsync(stream.fileno())
        whole.replace(self.output)
        shutil.rmtree(self.folder)


@contextmanager
def open_job(
    output: Path,
    key: Mapping[str, Any],
    histories: Iterable[History],
    check: Check,
    *,
    shard_users: int,
    force: bool = False,
) -> Iterator[BatchJob]:
    """The job of an output file while the block runs: a new one, or a killed one to go on with.

    Args:
        output: the file of answers.
        key: what the answers depend on, as JSON values; a job goes on only with the same.
        histories: all users; read to the end for a new job, before any is answered.
        check: what is wrong with a history; None if nothing is.
        shard_users: users a shard; at most so many are answered twice after a kill.
        force: drop a job that was begun with another key.

    Raises:
        DataError: faulty histories, all in one message; another run has the folder; or it was begun
            with another key.
    """
    folder = output.with_name(output.name + ".parts")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        wanted = {**key, "shard_users": shard_users}
        begun = _read_key(folder)
        if begun is not None and begun["key"] != wanted and not force:
            raise DataError(_describe_other(folder, begun["key"], wanted))
        if begun is not None and begun["key"] == wanted:
            job = BatchJob(output, folder, tuple(begun["sizes"]))
            n_open = sum(job.sizes[shard] for shard in job.open_shards)
            _log.info(
                "recommend: going on after %s of %s users",
                f"{job.n_users - n_open:,}",
                f"{job.n_users:,}",
            )
        else:
            for path in folder.glob("*.parquet*"):
                path.unlink()
            job = BatchJob(output, folder, ())
            try:
                sizes = _write_shards(job, histories, check, shard_users)
            except DataError:
                shutil.rmtree(folder)
                raise
            write_json(folder / _JOB_FILE, {"key": wanted, "sizes": sizes})
            job = BatchJob(output, folder, tuple(sizes))
        yield job


def build_part(users: Iterable[str], answers: Iterable[Iterable[Recommendation]]) -> pa.Table:
    """The answers of some users as a table of `PART_SCHEMA`."""
    rows = [
        {
            "user_id": user,
            "recommendations": [
                {
                    "item_id": answer.item_id,
                    "rank": answer.rank,
                    "score": answer.score,
                    "title": answer.title,
                    "sid": answer.sid,
                }
                for answer in found
            ],
        }
        for user, found in zip(users, answers, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def read_shard(path: Path) -> list[History]:
    """The users of a shard."""
    return [
        History(row["user_id"], tuple(row["history"])) for row in pq.read_table(path).to_pylist()
    ]


def _write_shards(
    job: BatchJob, histories: Iterable[History], check: Check, shard_users: int
) -> list[int]:
    """Cut the users into files; the number of users in each."""
    sizes: list[int] = []
    rows: list[dict[str, Any]] = []
    problems: list[str] = []

    def flush() -> None:
        if rows and not problems:
            _write_table(
                pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), job.shard_path(len(sizes))
            )
        sizes.append(len(rows))
        rows.clear()

    for history in histories:
        problem = check(history)
        if problem is not None:
            problems.append(f"user {history.user_id}: {problem}")
        rows.append({"user_id": history.user_id, "history": list(history.item_ids)})
        if len(rows) == shard_users:
            flush()
    if rows:
        flush()
    if problems:
        raise DataError(join_problems("no user was answered, since some cannot be", problems))
    return sizes


def _write_table(table: pa.Table, path: Path) -> None:
    """Write a file that is on disk, whole, when it has its name."""
    part = path.with_name(path.name + ".tmp")
    with part.open("wb") as stream:
        pq.write_table(table, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _read_key(folder: Path) -> dict[str, Any] | None:
    """What the job in a folder was begun with; None where preparing it was not finished."""
    path = folder / _JOB_FILE
    return read_json(path) if path.is_file() else None


def _describe_other(folder: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*begun, *wanted} if begun.get(name) != wanted.get(name))
    told = "; ".join(
        f"{name} was {json.dumps(begun.get(name))}, is {json.dumps(wanted.get(name))}"
        for name in names
    )
    return (
        f"{folder} holds a run that was begun differently ({told}); give the same to go on with "
        f"it, name another --output, or begin again with --force"
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """The folder to oneself while the block runs; a killed process lets go of it."""
    # Of the folder itself: a lock file in it would have to be told from the job's own.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another run is at work in {folder}; wait for it, or name another --output"
            ) from error
        yield
    finally:
        os.close(handle)

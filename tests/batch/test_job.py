"""A run that is cut off anywhere goes on, and no user is lost or answered twice."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from genrec.batch import job as job_module
from genrec.batch.job import BatchJob, build_part, open_job, read_shard
from genrec.errors import DataError
from genrec.types import History, Recommendation

USERS = [History(f"u{n}", (f"i{n}", "i0")) for n in range(7)]
KEY = {"k": 2}


def no_fault(_: History) -> None:
    return None


def answer(history: History) -> list[Recommendation]:
    return [Recommendation(f"for-{history.user_id}", 1, -0.5, "Tent", "<a_1>")]


def work(job: BatchJob, stop_before: int | None = None) -> list[str]:
    """Answer the open shards as a run does; the users that were answered."""
    done = []
    for shard in job.open_shards:
        if shard == stop_before:
            raise KeyboardInterrupt
        histories = read_shard(job.shard_path(shard))
        done += [history.user_id for history in histories]
        job.write_part(shard, build_part((h.user_id for h in histories), map(answer, histories)))
    return done


def begin(output: Path, histories: Iterable[History] = USERS, **changes: Any) -> Any:
    values = {"key": KEY, "check": no_fault, "shard_users": 3} | changes
    return open_job(output, values.pop("key"), histories, values.pop("check"), **values)


def test_all_users_come_out_in_order(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with begin(output) as job:
        assert (job.n_users, job.sizes) == (7, (3, 3, 1))
        work(job)
        assert not output.exists()
        job.write_output("jsonl")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["user_id"] for line in lines] == [user.user_id for user in USERS]
    assert lines[0]["recommendations"] == [
        {"rank": 1, "item_id": "for-u0", "score": -0.5, "title": "Tent", "sid": "<a_1>"}
    ]
    assert list(tmp_path.iterdir()) == [output]


def test_parquet_out(tmp_path: Path) -> None:
    with begin(tmp_path / "answers.parquet") as job:
        work(job)
        job.write_output("parquet")
    frame = pl.read_parquet(tmp_path / "answers.parquet")
    assert frame["item_id"].to_list() == [f"for-u{n}" for n in range(7)]


def test_a_run_that_stops_goes_on_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), begin(output) as job:
        work(job, stop_before=1)
    with caplog.at_level("INFO", "genrec"), begin(output, histories=[]) as job:
        assert work(job) == ["u3", "u4", "u5", "u6"]
        job.write_output("jsonl")
    assert "going on after 3 of 7 users" in caplog.text
    assert len(output.read_text().splitlines()) == 7


def test_a_kill_while_users_are_cut_begins_anew(tmp_path: Path) -> None:
    def stop() -> Iterable[History]:
        yield from USERS[:5]
        raise KeyboardInterrupt

    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), begin(output, histories=stop()):
        pytest.fail("the job was not complete")
    assert (tmp_path / "answers.jsonl.parts").is_dir()
    with begin(output) as job:
        assert job.sizes == (3, 3, 1)
        assert len(work(job)) == 7


def test_a_part_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tear(_: Any, stream: Any) -> None:
        stream.write(b"PAR1 and no more")
        raise KeyboardInterrupt

    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), begin(output) as job:
        monkeypatch.setattr(job_module.pq, "write_table", tear)
        work(job)
    monkeypatch.undo()
    with begin(output) as job:
        assert job.open_shards == [0, 1, 2]


def test_another_request_does_not_go_on(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), begin(output) as job:
        work(job, stop_before=2)
    with (
        pytest.raises(
            DataError, match=r"begun differently \(k was 2, is 5\); give the same.*--force"
        ),
        begin(output, key={"k": 5}),
    ):
        pytest.fail("went on")
    with begin(output, key={"k": 5}, force=True) as job:
        assert job.open_shards == [0, 1, 2]


def test_faulty_users_are_all_named_before_any_is_answered(tmp_path: Path) -> None:
    def check(history: History) -> str | None:
        return "no such item" if history.user_id in {"u1", "u6"} else None

    with (
        pytest.raises(DataError, match="no user was answered") as error,
        begin(tmp_path / "answers.jsonl", check=check),
    ):
        pytest.fail("began")
    assert "user u1: no such item" in str(error.value)
    assert "user u6: no such item" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def hold_job(output: Path, ready: Any, leave: Any) -> None:
    with begin(output):
        ready.set()
        leave.wait(20)


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    spawn = multiprocessing.get_context("fork")
    ready, leave = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold_job, args=(output, ready, leave))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(DataError, match="another run is at work in"), begin(output):
            pytest.fail("shared")
    finally:
        leave.set()
        other.join()


@pytest.mark.parametrize("place", range(12))
def test_a_kill_at_any_write_loses_nothing(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each rename in turn, before it or after it; the last run ends with all users."""
    output = tmp_path / "answers.jsonl"
    before = place % 2 == 0
    count = place // 2
    rename: Callable[[Path, Path], Path] = Path.replace

    def stop(path: Path, target: Path) -> Path:
        nonlocal count
        count -= 1
        if count >= 0:
            return rename(path, target)
        monkeypatch.setattr(Path, "replace", rename)
        if not before:
            rename(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        finish(output)
    finish(output)
    users = [json.loads(line)["user_id"] for line in output.read_text().splitlines()]
    assert users == [user.user_id for user in USERS]
    assert not (tmp_path / "answers.jsonl.parts").exists()


def finish(output: Path) -> None:
    with begin(output) as job:
        work(job)
        job.write_output("jsonl")

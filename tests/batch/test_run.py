"""Users answered in one process, over a cluster, and by a command that is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from genrec import cli
from genrec.batch.job import open_job
from genrec.batch.run import Request, check_request, describe_run, find_fault, run_job_on_ray
from genrec.decode.engine import Search
from genrec.errors import CapacityError, ClusterError, DataError, RecipeError, UnknownItemError
from genrec.opening import ModelChoice
from genrec.recommender import Recommender
from genrec.tokenizers.cluster import RayEngine
from genrec.types import Filters, History

runner = CliRunner()


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.from_pretrained(tiny_run / "model")


def write_users(path: Path, item_ids: tuple[str, ...], n_users: int = 9) -> Path:
    users = [f"u{n}" for n in range(n_users)]
    histories = [
        [item_ids[(n * 7 + step) % len(item_ids)] for step in range(3)] for n in range(n_users)
    ]
    pl.DataFrame({"user_id": users, "history": histories}).write_parquet(path)
    return path


def call(*arguments: str) -> None:
    done = runner.invoke(cli.app, ["recommend", *arguments])
    if done.exception is not None:
        raise done.exception


def test_a_file_is_answered_as_its_users_alone(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "users.parquet", recommender.item_ids)
    call("-m", str(tiny_run / "model"), "-i", str(users), "-o", str(tmp_path / "out.jsonl"),
         "-k", "4", "--shard-users", "4", "--batch-size", "3")  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = pl.read_parquet(users).rows()
    assert [line["user_id"] for line in lines] == [user for user, _ in rows]
    for line, (_, history) in zip(lines, rows, strict=True):
        expected = recommender.recommend(history, k=4)
        assert [a["item_id"] for a in line["recommendations"]] == [a.item_id for a in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "users.parquet"]


def test_filters_and_search_reach_the_answers(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    allowed = recommender.item_ids[10:14]
    users = write_users(tmp_path / "users.parquet", recommender.item_ids[20:], n_users=3)
    flags = [flag for item_id in allowed for flag in ("--allow", item_id)]
    call("-m", str(tiny_run / "model"), "-i", str(users), "-o", str(tmp_path / "out.parquet"),
         *flags, "--deny", allowed[0], "--width", "20", "--normalize", "child",
         "--length-penalty", "0.5")  # fmt: skip
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert set(frame["item_id"]) == set(allowed[1:])
    assert len(frame) == 9


def test_what_cannot_be_answered_is_refused_before_any_work(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    users = tmp_path / "users.jsonl"
    known = recommender.item_ids[0]
    users.write_text(f'["{known}"]\n["nope", "{known}"]\n["nope"]\n')
    files = ("-m", str(tiny_run / "model"), "-i", str(users), "-o", str(tmp_path / "out.jsonl"))
    with pytest.raises(DataError, match=r"(?s)user 2: the catalogue has no item 'nope'.*user 3"):
        call(*files)
    with pytest.raises(DataError, match="user 3: none of the 1 ids is in the catalogue; leave the"):
        call(*files, "--unknown", "skip")
    with pytest.raises(CapacityError, match="k=100 answers"):
        call(*files, "-k", "100")
    with pytest.raises(CapacityError, match="width=3 beams cannot give k=10"):
        call(*files, "--width", "3")
    with pytest.raises(UnknownItemError, match=r"no item 'gone'.*leave it out of `deny`"):
        call(*files, "--deny", "gone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["users.jsonl"]
    with pytest.raises(RecipeError, match="--engine ray works from a file to a file"):
        call("-m", str(tiny_run / "model"), known, "--engine", "ray")
    with pytest.raises(RecipeError, match="--ray-address head:1 is of use with --engine ray only"):
        call(*files, "--ray-address", "head:1")


def test_a_run_is_known_by_input_model_and_request(tiny_run: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text('["a"]\n')
    choice = ModelChoice(tiny_run / "model")
    first = describe_run(users, choice, Request())
    assert first == describe_run(users, choice, Request())
    assert json.loads(json.dumps(first)) == first
    others = [
        describe_run(users, choice, Request(k=5)),
        describe_run(users, choice, Request(filters=Filters(deny=("a",)))),
        describe_run(users, choice, Request(search=Search(exact=True))),
        describe_run(users, ModelChoice(tiny_run / "model", dtype="bfloat16"), Request()),
        describe_run(users, ModelChoice(tiny_run / "base"), Request()),
    ]
    users.write_text('["b"]\n')
    others.append(describe_run(users, choice, Request()))
    assert all(other != first for other in others)


def test_a_run_that_stopped_goes_on_by_the_same_command(
    recommender: Recommender, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = write_users(tmp_path / "users.parquet", recommender.item_ids)
    files = ("-m", str(tiny_run / "model"), "-i", str(users), "-o", str(tmp_path / "out.jsonl"))
    asked: list[int] = []
    recommend = Recommender.recommend_batch

    def stop(self: Recommender, histories: list[tuple[str, ...]], *rest: object, **words: object):
        asked.append(len(histories))
        if sum(asked) > 5:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return recommend(self, histories, *rest, **words)

    monkeypatch.setattr(Recommender, "recommend_batch", stop)
    with pytest.raises(SystemExit):
        call(*files, "--shard-users", "2", "--batch-size", "2")
    assert not (tmp_path / "out.jsonl").exists()
    assert len(list((tmp_path / "out.jsonl.parts").glob("answers-*.parquet"))) == 2
    with pytest.raises(DataError, match=r"begun differently \(k was 10, is 3\)"):
        call(*files, "--shard-users", "2", "-k", "3")
    call(*files, "--shard-users", "2", "--batch-size", "2")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 9


def test_faults_of_histories(recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    assert find_fault(recommender.catalogue, "error", History("u", (known,))) is None
    assert find_fault(recommender.catalogue, "skip", History("u", (known, "x"))) is None
    check_request(recommender, Request())


@pytest.mark.slow
def test_a_command_that_is_killed_ends_with_every_user_once(
    recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "users.parquet", recommender.item_ids, n_users=150)
    output = tmp_path / "out.jsonl"
    command = [
        sys.executable, "-m", "genrec", "recommend", "-m", str(tiny_run / "model"),
        "-i", str(users), "-o", str(output), "--shard-users", "20", "--batch-size", "5",
    ]  # fmt: skip
    random.seed(0)
    parts = tmp_path / "out.jsonl.parts"
    kills = 0
    while not output.exists():
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        before = len(list(parts.glob("answers-*.parquet")))
        # Killed soon after it has got on with the work; then left to finish.
        while kills < 1 and process.poll() is None:
            if len(list(parts.glob("answers-*.parquet"))) >= before + random.randint(1, 3):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait(60)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["user_id"] for row in rows] == [f"u{n}" for n in range(150)]
    whole = recommender.recommend_batch(pl.read_parquet(users)["history"].to_list())
    for row, expected in zip(rows, whole, strict=True):
        assert [a["item_id"] for a in row["recommendations"]] == [a.item_id for a in expected]
    assert kills == 1


@pytest.mark.slow
def test_two_nodes_answer_what_one_process_does(
    two_nodes: str, recommender: Recommender, tiny_run: Path, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "users.parquet", recommender.item_ids, n_users=240)
    model = str(tiny_run / "model")
    for name, more in (("here", ()), ("there", ("--engine", "ray", "--ray-address", two_nodes))):
        done = runner.invoke(
            cli.app,
            ["recommend", "-m", model, "-i", str(users), "-o", str(tmp_path / f"{name}.parquet"),
             "--shard-users", "10", "--batch-size", "1", *more],
        )  # fmt: skip
        assert done.exception is None, done.exception
    assert "ray: 24 parts by 2 workers on 2 nodes" in done.output
    here, there = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    assert here.drop("score").equals(there.drop("score"))
    assert (here["score"] - there["score"]).abs().max() < 1e-5


@pytest.mark.slow
def test_a_fault_on_a_node_is_one_message(two_nodes: str, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    engine = RayEngine(two_nodes)
    with (
        pytest.raises(ClusterError, match="a worker on the Ray cluster failed: ArtifactError"),
        open_job(
            tmp_path / "no.jsonl", {}, [History("u", ("a",))], lambda _: None, shard_users=3
        ) as job,
    ):
        run_job_on_ray(job, engine, ModelChoice(tmp_path / "model"), Request(k=3), 8)

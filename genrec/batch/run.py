"""The work of a batch run: users answered in this process, or by the workers of a Ray cluster.

Owns what is asked for every user and who answers which shard. Knows no file format but the job's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrec.batch.answers import AnswerWriter
from genrec.batch.job import BatchJob, build_part, read_shard
from genrec.catalogue import Catalogue
from genrec.decode.engine import PLAIN, Search
from genrec.manifest import MANIFEST, hash_file
from genrec.model_weights import find_home
from genrec.opening import ModelChoice, open_recommender
from genrec.progress import show_progress
from genrec.recommender import NO_FILTERS, Recommender
from genrec.tokenizers.cluster import RayEngine
from genrec.types import Filters, History, Recommendation, Unknown


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for every user; the names are those of `Recommender.recommend`."""

    k: int = 10
    exclude_seen: bool = True
    unknown: Unknown = "error"
    filters: Filters = NO_FILTERS
    search: Search = PLAIN


def answer_users(
    recommender: Recommender, histories: Sequence[History], request: Request
) -> list[list[Recommendation]]:
    """The answers to some users at once, in their order."""
    return recommender.recommend_batch(
        [history.item_ids for history in histories],
        request.k,
        request.exclude_seen,
        request.unknown,
        [history.user_id for history in histories],
        filters=request.filters,
        search=request.search,
    )


def write_answers(
    recommender: Recommender,
    histories: Sequence[History],
    request: Request,
    writer: AnswerWriter,
    batch_size: int,
) -> None:
    """Answer all histories in batches, handing each answer to the writer as it comes."""
    with show_progress("recommending", len(histories), unit="users") as advance:
        for batch in _cut(histories, batch_size):
            for history, items in zip(
                batch, answer_users(recommender, batch, request), strict=True
            ):
                writer.write(history.user_id, items)
            advance(len(batch))


def check_request(recommender: Recommender, request: Request) -> None:
    """Refuse what no user could be answered with, before any work.

    Raises:
        GenrecError: as `Recommender.recommend_batch`.
    """
    recommender.recommend_batch(
        [], request.k, request.exclude_seen, request.unknown, [], filters=request.filters
    )
    recommender.engine.rank_prompts([], request.k, request.search)


def describe_run(source: Path, choice: ModelChoice, request: Request) -> dict[str, Any]:
    """What the answers to a file of users depend on, as JSON values."""
    manifest = choice.model / MANIFEST
    described = manifest if manifest.is_file() else choice.model / "config.json"
    values = asdict(request)
    mask = values["filters"].pop("mask")
    assert mask is None, "the command line has no masks"
    key = {
        "input": hash_file(source),
        "model": hash_file(described) if described.is_file() else str(choice.model),
        **{name: value for name, value in asdict(choice).items() if name != "model"},
        "catalogue": choice.catalogue and hash_file(choice.catalogue / MANIFEST),
        "adapter": choice.adapter and hash_file(find_home(choice.adapter) / MANIFEST),
        **values,
    }
    plain: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return plain


def find_fault(catalogue: Catalogue, unknown: Unknown, history: History) -> str | None:
    """What keeps a history from being answered; None if nothing does."""
    missing = [item_id for item_id in history.item_ids if item_id not in catalogue.rows]
    if missing and unknown == "error":
        return (
            f"the catalogue has no item {missing[0]!r}; correct the id, or leave unknown ones out "
            f"with --unknown skip"
        )
    if len(missing) == len(history.item_ids):
        return f"none of the {len(missing)} ids is in the catalogue; leave the user out"
    return None


def run_job(job: BatchJob, recommender: Recommender, request: Request, batch_size: int) -> None:
    """Answer all open shards in this process, one after the other."""
    shards = job.open_shards
    total = sum(job.sizes[shard] for shard in shards)
    with show_progress("recommending", total, unit="users") as advance:
        for shard in shards:
            histories = read_shard(job.shard_path(shard))
            answers: list[list[Recommendation]] = []
            for batch in _cut(histories, batch_size):
                answers += answer_users(recommender, batch, request)
                advance(len(batch))
            job.write_part(shard, build_part((h.user_id for h in histories), answers))


def run_job_on_ray(
    job: BatchJob,
    cluster: RayEngine,
    choice: ModelChoice,
    request: Request,
    batch_size: int,
) -> None:
    """Answer all open shards on a cluster, a worker with a model of its own a GPU or CPU core.

    Workers read shards from the job's folder and models from their directories, so every node must
    see both under the same paths.

    Args:
        job: the users.
        cluster: whose workers answer.
        choice: the model that each worker opens; any device but `cpu` takes the cluster's GPUs, if
            it has any.
        request: what is asked.
        batch_size: users at once.

    Raises:
        ClusterError: no cluster, or a fault on it; the shards that are done stay.
    """
    parts = [
        {"part": number, "shard": shard, "path": str(job.shard_path(shard).resolve())}
        for number, shard in enumerate(job.open_shards)
    ]
    total = sum(job.sizes[shard] for shard in job.open_shards)
    work = partial(_load_worker, choice, request, batch_size)
    with show_progress("recommending", total, unit="users") as advance:
        for number, found in cluster.run_parts(work, parts, choice.device or "auto"):
            part = pa.ipc.open_stream(pa.py_buffer(found.tobytes())).read_all()
            shard = int(str(parts[number]["shard"]))
            job.write_part(shard, part)
            advance(job.sizes[shard])


def _load_worker(
    choice: ModelChoice, request: Request, batch_size: int
) -> Callable[[Mapping[str, Any]], NDArray[Any]]:
    recommender = open_recommender(choice)

    def work(part: Mapping[str, Any]) -> NDArray[Any]:
        histories = read_shard(Path(str(part["path"])))
        answers = [
            found
            for batch in _cut(histories, batch_size)
            for found in answer_users(recommender, batch, request)
        ]
        table = build_part((history.user_id for history in histories), answers)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return np.frombuffer(sink.getvalue(), dtype=np.uint8)

    return work


def _cut(histories: Sequence[History], size: int) -> Iterator[Sequence[History]]:
    for start in range(0, len(histories), size):
        yield histories[start : start + size]

"""Rows written by several processes, in the order of one.

Owns the processes: each reads the artefacts itself, renders whole batches, and sends them back as
Arrow streams; the batches and their order are those of a single process, and so are the bytes.
Knows no file that rows go to.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from genrec.data.dataset import load_dataset
from genrec.errors import ArtifactError
from genrec.prompts.corpus import Corpus, hold_out_valid, read_corpus
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import RowPlan
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.rows import split_plan, write_table, write_tables

LARGE_ROWS = 2_000_000
"""Where several processes begin to pay: each takes seconds to start and to read the corpus, in
which one process writes some million plain rows."""

BATCHES_A_WORKER = 3
"""Batches that are rendered or waiting at once, so that memory stays flat."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """What a process needs to make the corpus and the library again.

    Attributes:
        held: whether the walks end with the validation item (`hold_out_valid`).
    """

    recipe: PromptsRecipe
    data: Path
    tokenizer: Path
    users: Path | None = None
    held: bool = False

    def read(self) -> tuple[Corpus, Library]:
        """The corpus and the library."""
        dataset = load_dataset(self.data)
        corpus, _ = read_corpus(self.recipe, dataset, self.tokenizer, self.users)
        if self.held:
            corpus = hold_out_valid(corpus, dataset)
        return corpus, build_library(self.recipe)


def choose_workers(workers: int | None, n_rows: int) -> int:
    """How many processes write: as many as asked for, else all cores for a large plan."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if n_rows >= LARGE_ROWS else 1


def stream_tables(
    source: RowSource, corpus: Corpus, library: Library, plan: RowPlan, workers: int = 1
) -> Iterator[pa.Table]:
    """The planned rows in order, as `write_tables` gives them.

    Args:
        source: what other processes read; not looked at where one is enough.
        corpus: what rows are written from.
        library: the templates.
        plan: the rows.
        workers: processes that render; 1 is this one.

    Raises:
        ArtifactError: a process ended before its work did.
    """
    if workers == 1 or not len(plan):
        yield from write_tables(corpus, library, plan)
        return
    pool = ProcessPoolExecutor(
        workers,
        # Not forked: the libraries that we have loaded keep threads and locks of their own.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(source,),
    )
    waiting: deque[Future[bytes]] = deque()
    try:
        for batch in split_plan(plan):
            waiting.append(pool.submit(_render_batch, batch))
            if len(waiting) >= BATCHES_A_WORKER * workers:
                yield _read_table(waiting.popleft())
        while waiting:
            yield _read_table(waiting.popleft())
    except BrokenProcessPool as error:
        raise ArtifactError(
            f"one of the {workers} processes that write rows was ended before its work was done "
            f"(out of memory, or killed); nothing is marked as finished. Run again with fewer "
            f"workers; in a script of your own, start below `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_working: tuple[Corpus, Library] | None = None


def _start_worker(source: RowSource) -> None:
    global _working  # noqa: PLW0603 - a process of a pool keeps what its initializer has read
    pa.set_cpu_count(1)
    _working = source.read()


def _render_batch(batch: RowPlan) -> bytes:
    assert _working is not None, "the initializer has run"
    table = write_table(*_working, batch)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read_table(future: Future[bytes]) -> pa.Table:
    return pa.ipc.open_stream(future.result()).read_all()

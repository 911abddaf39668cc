"""Several processes write what one writes; a killed one is one clear error."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import ArtifactError
from genrec.manifest import hash_file
from genrec.prompts import workers
from genrec.prompts.plan import plan_train
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.prompts.workers import (
    LARGE_ROWS,
    RowSource,
    choose_workers,
    stream_tables,
)

from .conftest import WriteData, WriteTokenizer, sid_of


def hash_rows(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(out)): hash_file(path) for path in files}


def test_how_many() -> None:
    assert choose_workers(3, 10) == 3
    assert choose_workers(None, LARGE_ROWS - 1) == 1
    assert choose_workers(None, LARGE_ROWS) == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_two_processes_write_the_same_files(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("genrec.prompts.rows.BATCH_ROWS", 100)
    random = np.random.default_rng(0)
    data = write_data([random.integers(5, size=12).tolist() for _ in range(60)])
    tokenizer = write_tokenizer()
    passes = recipe.model_copy(update={"passes": 2})
    for count in (1, 2):
        make_instructions(passes, data, tokenizer, tmp_path / str(count), workers=count)
    assert hash_rows(tmp_path / "1") == hash_rows(tmp_path / "2")


def test_each_process_reads_the_same_corpus(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    """What a worker does, in this process."""
    source = RowSource(recipe, write_data([[0, 1, 2, 3, 4]] * 9), write_tokenizer())
    corpus, library = source.read()
    plan = plan_train(corpus, library, recipe)
    (table,) = stream_tables(source, corpus, library, plan)
    workers._start_worker(source)
    assert workers._render_batch(plan)
    done: Future[bytes] = Future()
    done.set_result(workers._render_batch(plan))
    assert workers._read_table(done).equals(table)
    held = RowSource(recipe, source.data, source.tokenizer, held=True).read()[0]
    assert len(held.walks.item_index) == len(corpus.walks.item_index) + 9
    assert list(stream_tables(source, corpus, library, plan.take(np.zeros(0, dtype=int)), 2)) == []


def kill_first(streamed: Iterator[object]) -> Iterator[object]:
    for table in streamed:
        yield table
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_one_clear_error(
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("genrec.prompts.rows.BATCH_ROWS", 5)
    source = RowSource(recipe, write_data([[0, 1, 2, 3, 4]] * 200), write_tokenizer())
    corpus, library = source.read()
    plan = plan_train(corpus, library, recipe)
    with pytest.raises(ArtifactError, match=r"one of the 2 processes that write rows was ended.*"
                       r"fewer workers; in a script of your own"):  # fmt: skip
        for _ in kill_first(stream_tables(source, corpus, library, plan, 2)):
            pass


@pytest.mark.slow
def test_two_processes_on_real_data(
    tmp_path: Path,
    find_real_data: Callable[[str], Path],
    recipe: PromptsRecipe,
    write_tokenizer: WriteTokenizer,
) -> None:
    folder = find_real_data("amazon14-beauty")
    source = DataRecipe(source="table", interactions=str(folder / "interactions.parquet"),
                        items=str(folder / "items.parquet"))  # fmt: skip
    data = make_data(source, tmp_path / "data").path
    ids = pl.read_parquet(data / "items.parquet")["item_id"].to_list()
    shuffled = np.random.default_rng(0).permutation(len(ids)).tolist()
    tokenizer = write_tokenizer(item_ids=ids, sids=[sid_of(number) for number in shuffled])
    for count in (1, 2):
        made = make_instructions(recipe, data, tokenizer, tmp_path / str(count), workers=count)
        assert made.manifest.facts["rows"]["train"] == 155_615
    assert hash_rows(tmp_path / "1") == hash_rows(tmp_path / "2")

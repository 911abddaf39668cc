"""Instruction rows: how many a second, and against the plain way of writing them.

Owns the made-up catalogue and what is timed. The rival is what the papers' code does: for each row
Python's own `str.format` and a line of JSON, with no record of what came from data and no check.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genrec.bench.rows import build_row, report_rows, time_rivals
from genrec.data.dataset import load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.prompts.audit_rows import RowAudit
from genrec.prompts.corpus import Corpus
from genrec.prompts.library import Library
from genrec.prompts.plan import RowPlan, plan_train
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.rows import FEATURES
from genrec.prompts.step import make_instructions
from genrec.prompts.workers import RowSource, stream_tables
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import make_tokenizer

ROWS_PER_SECOND = 50_000
WORKERS = 2
LEAST_CHOICES, MOST_CHOICES = 4, 24
_CODES = (256, 256, 256)
"""Levels of the made-up ids, as many as GRID and MiniOneRec use."""


def bench_prompts(n_users: int = 20_000, n_items: int = 10_000, repeats: int = 3) -> dict[str, Any]:
    """Sequential rows a second, in turns with the rival, as `genrec bench` writes them.

    Args:
        n_users: users, of some 12 training choices each.
        n_items: size of the catalogue.
        repeats: rounds; medians are shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = _make_source(work, n_users, n_items)
        corpus, library = source.read()
        plan = plan_train(corpus, library, source.recipe)
        audit = _start_audit(source, corpus, library)
        tables = list(stream_tables(source, corpus, library, plan))
        rivals = {
            "plain": lambda: _write_plain(corpus, library, plan, work / "plain.jsonl"),
            "one": lambda: _write(stream_tables(source, corpus, library, plan), work / "one"),
            "two": lambda: _write(
                stream_tables(source, corpus, library, plan, WORKERS), work / "two"
            ),
            "audit": lambda: deque(map(audit.add, tables), maxlen=0),
            "step": lambda: make_instructions(
                source.recipe, source.data, source.tokenizer, work / "out"
            ),
        }
        seconds = time_rivals(rivals, repeats)
    rate = {name: len(plan) / statistics.median(values) for name, values in seconds.items()}
    against = f"{rate['plain']:,.0f} by str.format and JSON lines, without spans or checks"
    unit = "rows/s"
    return report_rows(
        [
            build_row("prompts: sequential rows, one process", rate["one"], unit,
                      least=ROWS_PER_SECOND, against=against),
            build_row("prompts: against the plain way", rate["one"] / rate["plain"], "times",
                      against="str.format and JSON lines"),
            build_row(f"prompts: sequential rows, {WORKERS} processes, their start included",
                      rate["two"], unit, against=against),
            build_row("prompts: rows audited", rate["audit"], unit),
            build_row("prompts: the whole step, audit and files included", rate["step"], unit,
                      least=ROWS_PER_SECOND),
            build_row("prompts: rows timed", len(plan), "rows"),
        ]
    )  # fmt: skip


def _make_source(work: Path, n_users: int, n_items: int) -> RowSource:
    random = np.random.default_rng(0)
    lengths = random.integers(LEAST_CHOICES, MOST_CHOICES, size=n_users)
    rows = []
    for user, length in enumerate(lengths.tolist()):
        items = random.integers(n_items, size=length).tolist()
        rows += [f"user-{user},item-{item},{place}" for place, item in enumerate(items)]
    log = work / "interactions.csv"
    log.write_text("\n".join(["user_id,item_id,position", *rows]) + "\n", encoding="utf-8")
    data = make_data(DataRecipe(source="table", interactions=str(log)), work / "data")
    codes = TokenizeRecipe(quantizer="random", codebook_sizes=_CODES)
    tokenizer = make_tokenizer(codes, None, work / "tokenizer", data=data.path)
    recipe = PromptsRecipe(tasks={"sequential": 1}, templates=("sequential",), max_valid_rows=100)
    return RowSource(recipe, data.path, tokenizer.path)


def _start_audit(source: RowSource, corpus: Corpus, library: Library) -> RowAudit:
    templates = [compiled.template for compiled in library.templates]
    return RowAudit(source.recipe, load_dataset(source.data), corpus.sids, templates)


def _write(tables: Iterator[pa.Table], out: Path) -> None:
    with pa.ipc.new_stream(str(out), FEATURES.arrow_schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_plain(corpus: Corpus, library: Library, plan: RowPlan, out: Path) -> None:
    """The same rows, as LC-Rec's and MiniOneRec's data classes make them: one at a time."""
    forms = {
        place: compiled.template.input.replace("{{ history }}", "{history}")
        for place, compiled in enumerate(library.templates)
    }
    walks, sids = corpus.walks, corpus.sids
    offsets, owner, items = walks.offsets.tolist(), walks.owner.tolist(), walks.item_index.tolist()
    with out.open("w", encoding="utf-8") as file:
        for template, place in zip(plan.template.tolist(), plan.subject.tolist(), strict=True):
            start = max(offsets[owner[place]], place - corpus.max_history)
            history = "".join(sids[item] for item in items[start:place])
            row = {"input": forms[template].format(history=history), "output": sids[items[place]]}
            file.write(json.dumps(row) + "\n")

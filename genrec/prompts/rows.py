"""Planned rows, rendered and laid out as Arrow tables.

Owns the columns of an instruction dataset. Streams: a batch is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from genrec.prompts.corpus import Corpus
from genrec.prompts.library import Library
from genrec.prompts.plan import RowPlan
from genrec.prompts.render import CompiledTemplate
from genrec.prompts.sandbox import Rendered
from genrec.prompts.tasks.task import ReadField, Task
from genrec.types import IndexArray

BATCH_ROWS = 2000
DOMAIN_COLUMN = "domain"
"""The items' extra column that says which catalogue of several an item is from."""
FEATURES = Features(
    {
        "prompt": Value("string"),
        "prompt_spans": List(List(Value("int32"))),
        "target": Value("string"),
        "target_spans": List(List(Value("int32"))),
        "task": Value("string"),
        "template": Value("string"),
        "user_index": Value("int64"),
        "item_index": Value("int64"),
        "domain": Value("string"),
        "pass": Value("int32"),
    }
)


@dataclass(frozen=True, slots=True)
class _Writer:
    """A template joined to the fields of its task."""

    compiled: CompiledTemplate
    task: Task
    input_fields: tuple[tuple[str, ReadField], ...]
    target_fields: tuple[tuple[str, ReadField], ...]

    def render_rows(
        self, corpus: Corpus, subjects: IndexArray
    ) -> Iterator[tuple[Rendered, Rendered]]:
        shown = self._read_values(corpus, subjects, self.input_fields)
        asked = self._read_values(corpus, subjects, self.target_fields)
        for values, answer in zip(shown, asked, strict=True):
            yield self.compiled.input.render(values), self.compiled.target.render(answer)

    def _read_values(
        self, corpus: Corpus, subjects: IndexArray, fields: tuple[tuple[str, ReadField], ...]
    ) -> Iterator[dict[str, str]]:
        names = [name for name, _ in fields]
        columns = [read(corpus, self.compiled.template, subjects) for _, read in fields]
        if not columns:  # a text without fields is the same in every row
            return iter([{} for _ in subjects])
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def write_tables(corpus: Corpus, library: Library, plan: RowPlan) -> Iterator[pa.Table]:
    """The planned rows in order, as tables of at most `BATCH_ROWS` rows with `FEATURES`' schema."""
    writers = {place: _bind_template(library, place) for place in np.unique(plan.template).tolist()}
    for start in range(0, len(plan), BATCH_ROWS):
        rows = np.arange(start, min(start + BATCH_ROWS, len(plan)), dtype=np.int64)
        columns = _render_batch(corpus, writers, plan.take(rows))
        yield pa.table(columns, schema=FEATURES.arrow_schema)


def _bind_template(library: Library, place: int) -> _Writer:
    compiled = library.templates[place]
    task = library.find_task(place)
    return _Writer(
        compiled,
        task,
        tuple((name, task.input_fields[name].read) for name in sorted(compiled.input.names)),
        tuple((name, task.target_fields[name].read) for name in sorted(compiled.target.names)),
    )


def _render_batch(corpus: Corpus, writers: Mapping[int, _Writer], plan: RowPlan) -> dict[str, Any]:
    rows: dict[int, tuple[Rendered, Rendered]] = {}
    users = np.full(len(plan), -1, dtype=np.int64)
    items = np.full(len(plan), -1, dtype=np.int64)
    for template, writer in writers.items():
        places = np.flatnonzero(plan.template == template)
        subjects = plan.subject[places]
        rows.update(zip(places.tolist(), writer.render_rows(corpus, subjects), strict=True))
        users[places], items[places] = writer.task.find_owners(corpus, subjects)
    ordered = [rows[place] for place in range(len(plan))]
    domains = corpus.texts(DOMAIN_COLUMN)
    used = [writers[template].compiled.template for template in plan.template.tolist()]
    return {
        "prompt": [prompt.text for prompt, _ in ordered],
        "prompt_spans": [prompt.spans for prompt, _ in ordered],
        "target": [target.text for _, target in ordered],
        "target_spans": [target.spans for _, target in ordered],
        "task": [template.task for template in used],
        "template": [template.id for template in used],
        "user_index": users,
        "item_index": items,
        "domain": [domains[item] if item >= 0 else "" for item in items.tolist()],
        "pass": plan.number,
    }

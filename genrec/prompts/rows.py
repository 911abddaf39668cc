"""Planned rows, rendered and laid out as Arrow tables.

Owns the columns of an instruction dataset. Streams: a batch is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from genrec.prompts.columns import TextColumn, render_column
from genrec.prompts.corpus import Corpus
from genrec.prompts.library import Library
from genrec.prompts.plan import RowPlan
from genrec.prompts.render import CompiledTemplate
from genrec.prompts.tasks.task import Field, Task
from genrec.types import IndexArray

BATCH_ROWS = 8000
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
    """A template joined to its task."""

    compiled: CompiledTemplate
    task: Task

    def render_input(self, corpus: Corpus, subjects: IndexArray) -> TextColumn:
        names = self.compiled.input.names
        values = self._read_values(corpus, subjects, names, self.task.input_fields)
        return render_column(self.compiled.input, values, len(subjects))

    def render_target(self, corpus: Corpus, subjects: IndexArray) -> TextColumn:
        names = self.compiled.target.names
        values = self._read_values(corpus, subjects, names, self.task.target_fields)
        return render_column(self.compiled.target, values, len(subjects))

    def _read_values(
        self,
        corpus: Corpus,
        subjects: IndexArray,
        names: frozenset[str],
        fields: Mapping[str, Field],
    ) -> dict[str, list[str]]:
        template = self.compiled.template
        return {name: fields[name].read(corpus, template, subjects) for name in names}


def write_tables(corpus: Corpus, library: Library, plan: RowPlan) -> Iterator[pa.Table]:
    """The planned rows in order, as tables of at most `BATCH_ROWS` rows with `FEATURES`' schema."""
    for batch in split_plan(plan):
        yield write_table(corpus, library, batch)


def split_plan(plan: RowPlan) -> Iterator[RowPlan]:
    """The plan in batches of at most `BATCH_ROWS` rows, each of one pass."""
    passes = np.flatnonzero(np.diff(plan.number)) + 1
    edges = [0, *passes.tolist(), len(plan)]
    for first, last in pairwise(edges):
        for start in range(first, last, BATCH_ROWS):
            yield plan.take(np.arange(start, min(start + BATCH_ROWS, last), dtype=np.int64))


def write_table(corpus: Corpus, library: Library, plan: RowPlan) -> pa.Table:
    """The rows of a batch, which is all of one pass, as one table."""
    drawn = corpus.with_pass(int(plan.number[0]))
    inputs, targets, order = [], [], []
    users = np.full(len(plan), -1, dtype=np.int64)
    items = np.full(len(plan), -1, dtype=np.int64)
    for template in np.flatnonzero(np.bincount(plan.template)).tolist():
        writer = _Writer(library.templates[template], library.find_task(template))
        places = np.flatnonzero(plan.template == template)
        subjects = plan.subject[places]
        inputs.append(writer.render_input(drawn, subjects))
        targets.append(writer.render_target(drawn, subjects))
        users[places], items[places] = writer.task.find_owners(drawn, subjects)
        order.append(places)
    back = np.argsort(np.concatenate(order))
    return pa.table(
        {
            "prompt": pa.concat_arrays([column.texts for column in inputs]).take(back),
            "prompt_spans": pa.concat_arrays([column.spans for column in inputs]).take(back),
            "target": pa.concat_arrays([column.texts for column in targets]).take(back),
            "target_spans": pa.concat_arrays([column.spans for column in targets]).take(back),
            "task": _name_templates(library, "task").take(plan.template),
            "template": _name_templates(library, "id").take(plan.template),
            "user_index": users,
            "item_index": items,
            "domain": _list_domains(drawn).take(items % (len(drawn.sids) + 1)),
            "pass": plan.number.astype(np.int32),
        },
        schema=FEATURES.arrow_schema,
    )


def _name_templates(library: Library, attribute: str) -> pa.Array:
    names = [getattr(compiled.template, attribute) for compiled in library.templates]
    return pa.array(names, pa.string())


def _list_domains(corpus: Corpus) -> pa.Array:
    """Each item's domain, and at the end, where -1 leads, that of no item."""
    return corpus.remember(
        "rows.domains", lambda: pa.array([*corpus.texts(DOMAIN_COLUMN), ""], pa.string())
    )

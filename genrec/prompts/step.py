"""The prompts step: data and semantic ids in, instruction datasets out.

Owns the artefact's files and what is reported about them. Leaves wording to the templates, fields
to the tasks and chance to the plan.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
from datasets.table import MemoryMappedTable

from genrec.artifact import Artifact, write_artifact
from genrec.data.dataset import load_dataset
from genrec.errors import DataError
from genrec.manifest import read_json, write_json
from genrec.progress import show_progress
from genrec.prompts.audit import LeakAudit
from genrec.prompts.corpus import Corpus, hold_out_valid, read_corpus
from genrec.prompts.costs import TokenLimit
from genrec.prompts.explain import ExplainPrompt, choose_explain
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import RowPlan, plan_train, plan_valid
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import RECOMMEND_FILE, USER_CODES_FILE, USERS_FILE, HistoryPrompt
from genrec.prompts.rows import FEATURES, write_tables
from genrec.prompts.workers import RowSource, choose_workers, stream_tables
from genrec.recipe import hash_values

EXAMPLES_A_TASK = 3
_log = logging.getLogger(__name__)


def make_instructions(
    recipe: PromptsRecipe,
    data: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    users: str | Path | None = None,
    workers: int | None = None,
) -> Artifact:
    """The instructions artefact: training and validation rows, and the recommendation prompt.

    Args:
        recipe: what to write.
        data: the data artefact.
        tokenizer: the semantic-id tokenizer's artefact, made from the same catalogue.
        out: the directory to write; `train/` and `valid/` open with `datasets.load_from_disk`.
        users: a tokenizer artefact of the users, for templates that name them by semantic id.
        workers: processes that write rows, with the same result; all cores where rows are many.

    Raises:
        ArtifactError: an input is unusable, or the two belong to different catalogues.
        RecipeError: an unknown task, template file or template.
        TemplateError: a template that breaks a rule.
        DataError: no training row is left.
        LeakError: rows, or what they are made from, tell what is held out.
    """
    library = build_library(recipe)
    dataset = load_dataset(Path(data))
    corpus, inputs = read_corpus(recipe, dataset, tokenizer, users)
    train = plan_train(corpus, library, recipe)
    if not len(train):
        raise DataError(
            f"no training row can be written from {data}: no user has more than "
            f"{recipe.min_history} training items (min_history), or the data lack the fields that "
            f"all templates need; `genrec prompts plan` names them. Check the data's filters and "
            f"the recipe's tasks and templates"
        )
    held = hold_out_valid(corpus, dataset)
    valid = plan_valid(held, library, recipe)
    templates = [compiled.template for compiled in library.templates]
    audit = LeakAudit(recipe, dataset, corpus.sids, templates)
    audit.check_sources(inputs)
    source = RowSource(recipe, Path(data), Path(tokenizer), Path(users) if users else None)
    with write_artifact(out, step="prompts", recipe=recipe, inputs=inputs) as work:
        key = hash_values(
            [recipe.model_dump(mode="json"), *(a.manifest.digest for a in inputs.values())]
        )
        processes = choose_workers(workers, len(train))
        rows = stream_tables(source, corpus, library, train, processes)
        _write_split(work.path / "train", audit.watch("train", rows), library, train, key)
        rows = stream_tables(replace(source, held=True), held, library, valid)
        _write_split(work.path / "valid", audit.watch("valid", rows), library, valid, key)
        compiled = library.templates[library.recommend]
        limit = recipe.max_history_tokens
        prompt = HistoryPrompt(
            compiled.template,
            corpus.max_history,
            corpus.max_text_characters,
            None if limit is None else TokenLimit(limit, recipe.count_with),
            source="recipe",
        )
        prompt.save(work.path / RECOMMEND_FILE)
        _write_explain(library, train, prompt, work.path)
        write_json(work.path / "examples.json", _render_examples(corpus, library, train))
        work.facts.update(_collect_facts(corpus, library, train, valid), audit=audit.describe())
        if corpus.user_sids is not None:
            _write_users(corpus, inputs["users"], work.path)
    return work.artifact


def _write_explain(library: Library, plan: RowPlan, prompt: HistoryPrompt, out: Path) -> None:
    """Say how a model of these rows is asked for reasons, where any row gives one."""
    template = choose_explain(library, _count_templates(library, plan))
    if template is not None:
        most, characters = prompt.max_history, prompt.max_text_characters
        ExplainPrompt(template, most, characters, prompt.limit).save(out)


def _write_users(corpus: Corpus, users: Artifact, out: Path) -> None:
    """The users' ids, for training to add their tokens and for recommendation to spell them."""
    assert corpus.user_sids is not None
    table = {"user_id": corpus.user_ids, "sid": [str(sid) for sid in corpus.user_sids]}
    pl.DataFrame(table).filter(pl.col("sid") != "").write_parquet(out / USERS_FILE)
    sizes = read_json(users.path / "config.json")["codebook_sizes"]
    write_json(out / USER_CODES_FILE, {"codebook_sizes": sizes})


def _write_split(
    out: Path, tables: Iterator[pa.Table], library: Library, plan: RowPlan, key: str
) -> None:
    """Write one dataset by way of an Arrow stream, so that memory stays flat."""
    started = time.monotonic()
    stream = out.with_suffix(".arrow")
    with (
        show_progress(f"writing {out.name} rows", total=len(plan), unit="rows") as advance,
        pa.ipc.new_stream(stream, FEATURES.arrow_schema) as writer,
    ):
        for table in tables:
            writer.write_table(table)
            advance(table.num_rows)
    seconds = time.monotonic() - started
    # A fingerprint of our own: the default one differs from run to run, and with it the files.
    rows = datasets.Dataset(
        MemoryMappedTable.from_file(str(stream)), fingerprint=hash_values([key, out.name])[:16]
    )
    with _silence_bars():
        rows.save_to_disk(str(out), num_shards=None if len(plan) else 1)
    del rows
    stream.unlink()
    _log.info(
        "%s: %s rows (%s a second): %s",
        out.name,
        f"{len(plan):,}",
        f"{len(plan) / max(seconds, 1e-9):,.0f}",
        ", ".join(f"{task} {n:,}" for task, n in _count_tasks(library, plan).items()) or "none",
    )


@contextmanager
def _silence_bars() -> Iterator[None]:
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _count_templates(library: Library, plan: RowPlan) -> dict[str, int]:
    places, rows = np.unique(plan.template, return_counts=True)
    return {
        library.templates[place].template.id: int(n)
        for place, n in zip(places.tolist(), rows, strict=True)
    }


def _count_tasks(library: Library, plan: RowPlan) -> dict[str, int]:
    counts: Counter[str] = Counter()
    task_of = {c.template.id: c.template.task for c in library.templates}
    for template, rows in _count_templates(library, plan).items():
        counts[task_of[template]] += rows
    return dict(sorted(counts.items()))


def _collect_facts(
    corpus: Corpus, library: Library, train: RowPlan, valid: RowPlan
) -> dict[str, object]:
    return {
        "rows": {"train": len(train), "valid": len(valid)},
        "tasks": {
            "train": _count_tasks(library, train),
            "valid": _count_tasks(library, valid),
        },
        "templates": _count_templates(library, train),
        "max_history": corpus.max_history,
        "recommend_template": library.templates[library.recommend].template.id,
        "user_soft": any(
            "user_soft" in library.templates[place].input.names
            for place in {*np.unique(train.template).tolist(), library.recommend}
        ),
    }


def _render_examples(
    corpus: Corpus, library: Library, plan: RowPlan
) -> dict[str, list[dict[str, object]]]:
    """The first few rows of each task, logged one each."""
    tasks = np.array([c.template.task for c in library.templates])[plan.template]
    examples: dict[str, list[dict[str, object]]] = {}
    for task in sorted(set(tasks.tolist())):
        first = np.flatnonzero(tasks == task)[:EXAMPLES_A_TASK]
        tables = write_tables(corpus, library, plan.take(first))
        examples[task] = [row for table in islice(tables, 1) for row in table.to_pylist()]
        _log.info(
            "%s, for example: %r -> %r",
            task,
            examples[task][0]["prompt"],
            examples[task][0]["target"],
        )
    return examples

"""A small corpus that has everything a data set can have, laid down in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from genrec.prompts.corpus import Corpus, Walks
from genrec.prompts.library import Library
from genrec.prompts.plan import RowPlan
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import SidText
from genrec.prompts.rows import write_tables
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.task import Task
from genrec.types import IndexArray

from .conftest import sid_of

PLAIN = Template(
    id="t", task="sequential", source="x", input="x", target="x", fields=(), separator="; "
)
SAID = (
    "Solid brass and very heavy.",
    "The brass is thin. Broke.",
    "Fine!",
    "Very solid shoes, all.",
)


def make_corpus(
    walks: Sequence[Sequence[int]],
    *,
    n_items: int = 40,
    events: pl.DataFrame | None = None,
    items: pl.DataFrame | None = None,
    **values: object,
) -> Corpus:
    """A corpus of these training walks; items are numbered, titled and of three brands."""
    lengths = np.cumsum([0, *(len(walk) for walk in walks)])
    flat = np.array([item for walk in walks for item in walk], dtype=np.int64)
    recipe = PromptsRecipe.model_validate(values)
    return Corpus(
        items=make_items(n_items) if items is None else items,
        sids=[SidText(sid_of(item)) for item in range(n_items)],
        walks=Walks(np.arange(len(walks)), lengths.astype(np.int64), flat),
        events=make_events(len(flat)) if events is None else events,
        user_ids=[f"u{user}" for user in range(len(walks))],
        user_sids=[SidText(f"<ua_{user}><ub_0>") for user in range(len(walks))],
        recipe=recipe,
        max_history=5,
        seed=recipe.seed,
    )


def make_items(n_items: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "title": [f"Lamp number {item}" for item in range(n_items)],
            "brand": [("Acme", "Zed", "Blue")[item % 3] for item in range(n_items)],
            "categories": [f"Home > Kind {item % 4}" for item in range(n_items)],
            "description": [f"Shines {item} ways" for item in range(n_items)],
            "price": [item + 0.5 for item in range(n_items)],
            "text": [f"title: lamp {item}" for item in range(n_items)],
        }
    )


def make_events(n_choices: int) -> pl.DataFrame:
    places = range(n_choices)
    return pl.DataFrame(
        {
            "timestamp": [float(place % 8) for place in places],
            "rating": [float(1 + place % 5) for place in places],
            "review_text": [SAID[place % len(SAID)] for place in places],
            "review_title": [f"Opinion {place}" for place in places],
        }
    )


def make_walks(n_users: int = 12, length: int = 8, n_items: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(n_items)[:length].tolist() for _ in range(n_users)]


def read(task: str, field: str, corpus: Corpus, subjects: IndexArray) -> list[str]:
    """A field's values, whichever side it is on."""
    found = {**TASKS[task].input_fields, **TASKS[task].target_fields}[field]
    return found.read(corpus, PLAIN, subjects)


def find_subjects(task: str, corpus: Corpus, *fields: str) -> IndexArray:
    """The subjects of a task for which all these fields have a value."""
    chosen: Task = TASKS[task]
    offered = {**chosen.input_fields, **chosen.target_fields}
    subjects = chosen.find_subjects(corpus, corpus.recipe)
    for name in fields:
        subjects = subjects[offered[name].find_filled(corpus, subjects)]
    return subjects


def render_rows(
    corpus: Corpus, library: Library, place: int, number: int = 0
) -> list[dict[str, object]]:
    """Every row that a template can write in a pass, the held-back templates too."""
    template = library.templates[place].template
    needed = [name for name in template.fields if name not in template.optional]
    subjects = find_subjects(template.task, corpus, *needed)
    plan = RowPlan(np.full(len(subjects), place), subjects, np.full(len(subjects), number))
    return [row for table in write_tables(corpus, library, plan) for row in table.to_pylist()]

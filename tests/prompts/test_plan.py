"""Passes: each draws anew, in order, and the first is the same however many follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genrec.data.dataset import load_dataset
from genrec.prompts.chance import draw_below
from genrec.prompts.corpus import Corpus, read_corpus
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import RowPlan, plan_train
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import CleanText
from genrec.prompts.rows import BATCH_ROWS, split_plan, write_tables
from genrec.prompts.tasks import all_tasks, items
from genrec.prompts.tasks.task import Field, Task, always
from genrec.types import IndexArray

from .conftest import WriteData, WriteTokenizer

MakePlan = Callable[..., tuple[Corpus, Library, RowPlan]]
WALKS = [[i % 5, 1, 2, 3, 4, 0] for i in range(30)]


@pytest.fixture
def make_plan(
    recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> MakePlan:
    data, tokenizer = write_data(WALKS), write_tokenizer()

    def make(**values: object) -> tuple[Corpus, Library, RowPlan]:
        mine = PromptsRecipe.model_validate(recipe.model_dump() | values)
        corpus, _ = read_corpus(mine, load_dataset(data), tokenizer)
        library = build_library(mine)
        return corpus, library, plan_train(corpus, library, mine)

    return make


def test_passes_are_in_order_and_drawn_anew(make_plan: MakePlan) -> None:
    _, _, once = make_plan()
    _, library, plan = make_plan(passes=3)
    assert len(plan) == 3 * len(once) and (np.diff(plan.number) >= 0).all()
    assert np.bincount(plan.number).tolist() == [len(once)] * 3
    first = plan.take(np.arange(len(once)))
    assert (first.template == once.template).all() and (first.subject == once.subject).all()
    tasks = np.array([c.template.task for c in library.templates])[plan.template]
    by_pass = []
    for number in range(3):
        rows = plan.number == number
        key = sorted(zip(tasks[rows].tolist(), plan.subject[rows].tolist(), strict=True))
        by_pass.append((key, plan.template[rows].tolist(), plan.subject[rows].tolist()))
    assert by_pass[0][0] == by_pass[1][0] == by_pass[2][0]  # the same rows ...
    assert by_pass[0][1] != by_pass[1][1] != by_pass[2][1]  # ... in other wordings and order
    assert by_pass[0][2] != by_pass[1][2]


def test_weights_and_the_cap_hold_in_each_pass(make_plan: MakePlan) -> None:
    tasks = {"sequential": 0.5, "item-to-sid": 2}
    _, library, plan = make_plan(passes=4, tasks=tasks)
    names = np.array([c.template.task for c in library.templates])[plan.template]
    halves = [
        set(plan.subject[(plan.number == n) & (names == "sequential")].tolist()) for n in range(4)
    ]
    n_places = sum(len(walk) - 3 for walk in WALKS)
    assert all(0.25 * n_places < len(half) < 0.75 * n_places for half in halves)
    assert halves[0] != halves[1]  # another half each time
    assert set().union(*halves) > halves[0]
    for number in range(4):
        assert ((plan.number == number) & (names == "item-to-sid")).sum() == 2 * 5
    _, _, capped = make_plan(passes=2, max_rows=7)
    assert np.bincount(capped.number).tolist() == [7, 7]


def test_batches_hold_one_pass_each(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.prompts.rows.BATCH_ROWS", 40)
    assert BATCH_ROWS > 40
    corpus, library, plan = make_plan(passes=2)
    batches = list(split_plan(plan))
    assert all(len(set(batch.number.tolist())) == 1 and len(batch) <= 40 for batch in batches)
    assert np.concatenate([batch.subject for batch in batches]).tolist() == plan.subject.tolist()
    tables = list(write_tables(corpus, library, plan))
    passes = np.concatenate([table["pass"].to_numpy() for table in tables])
    assert passes.tolist() == plan.number.tolist()


def test_what_a_row_draws_differs_from_pass_to_pass(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        drawn = draw_below(corpus.seed, "test", subjects, 10**6)[:, 0]
        return [CleanText(str(number)) for number in drawn.tolist()]

    sid = items.ITEM_TASKS["item-to-sid"].target_fields
    owner = items.ITEM_TASKS["item-to-sid"]
    task = Task(owner.find_subjects, owner.find_owners, {"drawn": Field(read, always)}, sid)
    monkeypatch.setitem(all_tasks.TASKS, "drawn", task)
    file = tmp_path / "drawn.yaml"
    file.write_text(
        "kind: templates\nabout: x\ntemplates:\n- {id: drawn, task: drawn, source: x, "
        "fields: [drawn, sid], input: '{{ drawn }}', target: '{{ sid }}'}\n"
    )
    sequential = str(Path(__file__).parents[2] / "prompts" / "sequential.yaml")
    corpus, library, plan = make_plan(
        passes=2, tasks={"drawn": 1}, templates=(sequential, str(file))
    )
    rows = [row for table in write_tables(corpus, library, plan) for row in table.to_pylist()]
    drawn = [{r["item_index"]: r["prompt"] for r in rows if r["pass"] == n} for n in range(2)]
    assert len(drawn[0]) == 5
    assert all(drawn[0][item] != drawn[1][item] for item in range(5))

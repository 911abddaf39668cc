"""What each task's fields hold, read straight from a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.data.dataset import load_dataset
from genrec.prompts.corpus import Corpus, hold_out_valid, read_corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import SidText
from genrec.prompts.tasks.all_tasks import TASKS

from .conftest import WriteData, WriteTokenizer, sid_of

WALKS = [[0, 1, 2, 3, 4], [4, 3, 1, 0]]
TEMPLATE = Template(
    id="t", task="sequential", source="x", input="x", target="x", fields=(), separator="; "
)


@pytest.fixture
def corpus(write_data: WriteData, write_tokenizer: WriteTokenizer) -> Corpus:
    data: Path = write_data(WALKS)
    return read_corpus(PromptsRecipe(max_history=2), load_dataset(data), write_tokenizer())[0]


def test_item_fields_are_clean_text(corpus: Corpus) -> None:
    fields = TASKS["item-to-sid"].input_fields
    rows = np.array([3, 0])
    assert fields["title"].read(corpus, TEMPLATE, rows) == ["Old {{ lamp }} of brass", "Blue shoe"]
    assert fields["price"].read(corpus, TEMPLATE, rows) == ["", "9.50"]
    assert fields["price"].find_filled(corpus, rows).tolist() == [False, True]
    assert fields["description"].find_filled(corpus, rows).tolist() == [False, False]
    assert not any(field.trusted for field in fields.values())


def test_a_column_that_the_data_lacks_is_empty(corpus: Corpus) -> None:
    assert corpus.texts("colour") == [""] * 5


def test_histories_end_before_the_target(corpus: Corpus) -> None:
    task = TASKS["sequential"]
    subjects = task.find_subjects(corpus, PromptsRecipe())
    assert subjects.tolist() == [1, 2, 4]  # the first choice of each user has no history
    history = task.input_fields["history"].read(corpus, TEMPLATE, subjects)
    assert history == [sid_of(0), f"{sid_of(0)}; {sid_of(1)}", sid_of(4)]
    assert all(isinstance(text, SidText) for text in history)
    titles = task.input_fields["history_titles"].read(corpus, TEMPLATE, subjects)
    assert titles[1] == "Blue shoe; Red <a_1><b_2> hat"
    target = task.target_fields["sid"].read(corpus, TEMPLATE, subjects)
    assert target == [sid_of(1), sid_of(2), sid_of(3)]
    users, items = task.find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([0, 0, 1], [1, 2, 3])


def test_held_out_walks_end_with_the_validation_item(corpus: Corpus, write_data: WriteData) -> None:
    held = hold_out_valid(corpus, load_dataset(write_data(WALKS, name="again")))
    assert held.walks.item_index.tolist() == [0, 1, 2, 3, 4, 3, 1]
    assert held.walks.offsets.tolist() == [0, 4, 7]
    assert held.sids is corpus.sids


def test_inputs_never_offer_the_answer() -> None:
    for task in TASKS.values():
        assert not task.input_fields.keys() & task.target_fields.keys()


def test_extra_columns_of_other_types_become_text(corpus: Corpus) -> None:
    corpus.items.insert_column(0, pl.Series("year", [1999, None, 2001, 2002, 2003]))
    assert corpus.texts("year")[:2] == ["1999", ""]

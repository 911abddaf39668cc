"""Questions about users: what the answers are, and that they come from training choices alone."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.dataset import load_dataset
from genrec.prompts.corpus import Corpus, read_corpus
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import USER_MARK, SidText
from genrec.prompts.tasks.all_tasks import TASKS

from .conftest import WriteData, WriteTokenizer, sid_of

# Brands by item: Acme, none, Acme, [INST] Brand, Zed; the last two of a walk are held out.
WALKS = [[3, 0, 2, 4, 4], [1, 1, 4, 4], [0, 3, 1]]
TEMPLATE = Template(id="t", task="x", source="x", input="x", target="x", fields=())


@pytest.fixture
def corpus(write_data: WriteData, write_tokenizer: WriteTokenizer) -> Corpus:
    recipe = PromptsRecipe(min_history=1)
    return read_corpus(recipe, load_dataset(write_data(WALKS)), write_tokenizer())[0]


def test_the_next_items_attributes(corpus: Corpus) -> None:
    task = TASKS["next-attribute"]
    subjects = task.find_subjects(corpus, corpus.recipe)
    users, items = task.find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([0, 0, 1], [0, 2, 1])
    brand = task.target_fields["next_brand"]
    assert brand.read(corpus, TEMPLATE, subjects) == ["Acme", "Acme", ""]
    assert brand.find_filled(corpus, subjects).tolist() == [True, True, False]


def test_favourites_need_two_training_choices(corpus: Corpus) -> None:
    task = TASKS["user-attribute"]
    subjects = task.find_subjects(corpus, corpus.recipe)
    assert subjects.tolist() == [0, 1, 2]
    brand = task.target_fields["favourite_brand"]
    # User 1 has chosen only unbranded items in training: Zed, twice, is held out.
    assert brand.read(corpus, TEMPLATE, subjects) == ["Acme", "", ""]
    assert brand.find_filled(corpus, subjects).tolist() == [True, False, False]
    kind = task.target_fields["favourite_category"]
    assert kind.read(corpus, TEMPLATE, subjects) == ["Shoes > Blue", "Shoes > Blue", ""]


def test_the_latest_item_is_the_latest_of_training(corpus: Corpus) -> None:
    task = TASKS["user-attribute"]
    subjects = np.array([0, 1, 2])
    latest = task.target_fields["latest_sid"].read(corpus, TEMPLATE, subjects)
    assert latest == [sid_of(2), sid_of(1), sid_of(0)]
    assert all(isinstance(text, SidText) for text in latest)
    users, items = task.find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([0, 1, 2], [-1, -1, -1])


@pytest.mark.parametrize("name", ["sequential", "next-attribute", "user-attribute"])
def test_users_are_marks_that_no_filter_may_change(corpus: Corpus, name: str) -> None:
    field = TASKS[name].input_fields["user_soft"]
    assert field.trusted
    assert field.read(corpus, TEMPLATE, np.array([0, 1])) == [USER_MARK] * 2


def test_users_without_a_tokenizer_of_users_have_no_ids(corpus: Corpus) -> None:
    fields = TASKS["user-attribute"].input_fields
    subjects = np.array([0, 2])
    assert fields["user_sid"].read(corpus, TEMPLATE, subjects) == ["", ""]
    assert fields["user_sid"].find_filled(corpus, subjects).tolist() == [False, False]
    assert fields["user_id"].read(corpus, TEMPLATE, subjects) == ["u0", "u2"]

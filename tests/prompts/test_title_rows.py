"""Rows whose answers are titles: templates, plans and the recommendation prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.errors import TemplateError
from genrec.prompts.corpus import hold_out_valid, read_corpus
from genrec.prompts.library import build_library
from genrec.prompts.plan import plan_train, plan_valid
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import HistoryPrompt, find_template_faults
from genrec.prompts.tasks.sequential import SEQUENTIAL_TASKS
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import make_tokenizer
from tests.tokenizers.made_data import make_given, write_data


def make_template(**changes: object) -> Template:
    values = {
        "id": "mine", "task": "sequential", "source": "test", "recommend": True,
        "fields": ["history_titles", "title"], "separator": "; ",
        "input": "After {{ history_titles }}:", "target": "{{ title }}",
    }  # fmt: skip
    return Template.model_validate({**values, **changes})


def test_a_recommend_template_may_ask_for_a_title() -> None:
    assert find_template_faults(make_template()) == []
    [fault] = find_template_faults(make_template(target="It is {{ title }}"))
    assert "'{{ sid }}' or '{{ title }}' and nothing else" in fault
    recipe = PromptsRecipe(tasks={"sequential": 1.0}, templates=("next-title",))
    library = build_library(recipe)
    assert library.templates[library.recommend].template.id == "next-title-shop"
    assert "title" in SEQUENTIAL_TASKS["sequential"].target_fields


def test_a_prompt_of_titles_needs_no_semantic_ids(tmp_path: Path) -> None:
    prompt = HistoryPrompt(make_template(), 2, 20)
    assert prompt.asks_title and prompt.needs_titles
    rendered = prompt.render(["", "", ""], ["Ink", "<a_1> Pen", ""])
    assert rendered.text == "After <a_1> Pen; untitled:"
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["<a_1> Pen; untitled"]
    prompt.save(tmp_path)
    assert HistoryPrompt.load(tmp_path).asks_title
    sids = make_template(fields=["history", "sid"], input="{{ history }}", target="{{ sid }}")
    assert not HistoryPrompt(sids, 2, 20).asks_title


def test_soft_users_do_not_go_with_titles() -> None:
    template = make_template(
        fields=["history_titles", "user_soft", "title"],
        input="{{ user_soft }} after {{ history_titles }}:",
    )
    with pytest.raises(TemplateError, match="answers in titles do not go with user_soft"):
        HistoryPrompt(template, 5, 40)


def test_an_item_without_a_title_is_never_the_answer(tmp_path: Path) -> None:
    choices = [(user, item, "train") for user in (0, 1) for item in range(4)]
    choices += [(0, 4, "valid"), (1, 5, "valid")]
    columns = {"title": ["a", "", "b", "c", "", "d"]}
    data = write_data(tmp_path / "data", 6, choices, columns)
    tokenize = TokenizeRecipe.model_validate({"quantizer": "title"})
    make_tokenizer(tokenize, None, tmp_path / "tokenizer", data=data)
    recipe = PromptsRecipe(tasks={"sequential": 1.0}, templates=("next-title",))
    dataset = make_given(data).catalogue
    corpus, _ = read_corpus(recipe, dataset, tmp_path / "tokenizer")
    library = build_library(recipe)
    held = hold_out_valid(corpus, dataset)
    train, valid = plan_train(corpus, library, recipe), plan_valid(held, library, recipe)
    asked = corpus.walks.item_index[train.subject]
    assert sorted(asked.tolist()) == [2, 2, 3, 3], "item 1, a target of both users, has no title"
    assert held.walks.item_index[valid.subject].tolist() == [5]

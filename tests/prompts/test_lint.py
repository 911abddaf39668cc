"""Faults of wording are found, and the shipped families have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genrec.errors import RecipeError
from genrec.prompts.lint import Finding, lint_templates
from genrec.recipe import list_recipes

ITEM = {"id": "mine", "task": "item-to-sid", "source": "test", "fields": ["title", "sid"],
        "input": "My own words about {{ title }} are few", "target": "{{ sid }}"}  # fmt: skip
PAIR = [
    ITEM | {"id": "mine-other", "input": "Quite another question: the code of {{ title }}?"},
    ITEM | {"id": "mine-kept", "mark": "unseen", "input": "{{ title }} goes by which number here"},
]


def write(path: Path, *templates: dict[str, object], kind: str = "templates") -> Path:
    path.write_text(yaml.safe_dump({"kind": kind, "about": "x", "templates": list(templates)}))
    return path


def lint(tmp_path: Path, *templates: dict[str, object]) -> list[Finding]:
    return lint_templates([write(tmp_path / "mine.yaml", *templates)])


def test_shipped_families_have_no_fault() -> None:
    found = lint_templates()
    assert len([file for file in list_recipes() if file.kind == "templates"]) >= 4
    assert [finding for finding in found if finding.level == "fault"] == []


def test_a_good_file(tmp_path: Path) -> None:
    assert lint(tmp_path, ITEM, *PAIR) == []


@pytest.mark.parametrize(
    ("change", "level", "message"),
    [
        ({"fields": ["title", "brand", "sid"]}, "fault", "'brand' is declared but never used"),
        ({"fields": ["sid"]}, "fault", "field 'title' is used but not declared"),
        ({"input": "{{ title"}, "fault", "line 1 is not valid Jinja"),
        ({"task": "item-to-sids"}, "fault", "did you mean 'item-to-sid'"),
        ({"target": "the code"}, "fault", "field 'sid' is declared but never used"),
        (
            {"target": "Yes", "fields": ["title"]},
            "fault",
            "the target has no field, so that the answer is the same in every row",
        ),
        (
            {"input": "Now the code of it: {{ title }}", "target": "the code of it {{ sid }}"},
            "warning",
            "the input has the target's own words 'the code of it'",
        ),
        ({"input": "word " * 90 + "{{ title }}"}, "warning", "90 words of its own"),
        (
            {"input": "Which item is called, {{ title }}!"},
            "fault",
            "the same wording as 'item-to-sid-title' in items.yaml, punctuation aside",
        ),
        (
            {"input": "Which items is called {{ title }}?"},
            "warning",
            "nearly the same wording as 'item-to-sid-title' in items.yaml",
        ),
        ({"id": "item-to-sid-title"}, "fault", "its id is also in items.yaml"),
    ],
)
def test_one_fault(tmp_path: Path, change: dict[str, object], level: str, message: str) -> None:
    found = [f for f in lint(tmp_path, ITEM | change, *PAIR) if f.template]
    assert [(f.level, f.template) for f in found] == [(level, change.get("id", "mine"))]
    assert message in found[0].message
    assert found[0].file == str(tmp_path / "mine.yaml")


def test_answers_in_the_question(tmp_path: Path) -> None:
    copied = {"id": "copy", "task": "review-title", "source": "x",
              "fields": ["title", "review_text", "review_title"],
              "input": "{{ title }} {{ review_text }}", "target": "{{ review_title }}"}  # fmt: skip
    assert not [f for f in lint(tmp_path, copied) if f.level == "fault"]
    from genrec.prompts.tasks import all_tasks, items
    from genrec.prompts.tasks.task import Task

    texts = items.ITEM_TASKS["item-to-sid"].input_fields
    task = items.ITEM_TASKS["item-to-sid"]
    open_task = Task(task.find_subjects, task.find_owners, texts, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(all_tasks.TASKS, "open", open_task)
        one = {"id": "one", "task": "open", "source": "x", "fields": ["title"],
               "input": "{{ title }} is", "target": "{{ title }}"}  # fmt: skip
        two = {"id": "two", "task": "open", "source": "x", "fields": ["text", "brand"],
               "input": "{{ text }} by whom", "target": "{{ brand }}"}  # fmt: skip
        messages = [f.message for f in lint(tmp_path, one, two) if f.level == "fault"]
    assert "field 'title' is in the input and in the target" in messages[0]
    assert "the input shows 'text', which holds the brand" in messages[1]


def test_long_rows(tmp_path: Path) -> None:
    lists = " ".join(f"{{{{ history_titles }}}} part {n}" for n in range(5))
    long = {"id": "long", "task": "sequential", "source": "x", "fields": ["history_titles", "sid"],
            "input": lists, "target": "{{ sid }}", "separator": "; "}  # fmt: skip
    found = [f for f in lint(tmp_path, long) if f.template]
    assert "a row with long values has 6," in found[0].message


def test_families_out_of_balance(tmp_path: Path) -> None:
    seen = [f.message for f in lint(tmp_path, ITEM, PAIR[0])]
    assert seen == [
        "no template is marked unseen, so that other wordings cannot be tested; keep one back"
    ]
    single = [f.message for f in lint(tmp_path, ITEM, PAIR[1])]
    assert "task 'item-to-sid' has one wording to train with here" in single[0]
    unseen = [f.message for f in lint(tmp_path, PAIR[1])]
    assert "1 of 1 templates are unseen" in unseen[0]
    assert "task 'item-to-sid' has no wording to train with here" in unseen[1]


def test_repeats_within_a_file_and_faults_first(tmp_path: Path) -> None:
    again = ITEM | {"id": "again", "input": "my own words about  {{ title }} are few..."}
    found = lint(tmp_path, ITEM, again)
    assert [f.level for f in found] == ["fault", "warning"]
    assert "the same wording as 'mine' in mine.yaml" in found[0].message


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="kind 'prompts', but lint reads files of kind 'templ"):
        lint_templates([write(tmp_path / "x.yaml", ITEM, kind="prompts")])
    with pytest.raises(RecipeError, match="did you mean"):
        lint_templates(["itemz"])

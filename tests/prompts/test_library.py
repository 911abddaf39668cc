"""Template files are found, checked against their tasks, and shipped ones all render."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genrec.errors import RecipeError, TemplateError
from genrec.prompts.library import build_library, read_templates
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import SidText, render_template
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.recipe import RecipeFile, list_recipes, read_recipe

SEQUENTIAL = {
    "id": "mine",
    "task": "sequential",
    "source": "test",
    "recommend": True,
    "fields": ["history", "sid"],
    "input": "{{ history }}",
    "target": "{{ sid }}",
}


def write_templates(path: Path, *templates: dict[str, object], kind: str = "templates") -> str:
    path.write_text(yaml.safe_dump({"kind": kind, "about": "x", "templates": list(templates)}))
    return str(path)


def find_shipped() -> list[RecipeFile]:
    return [recipe for recipe in list_recipes() if recipe.kind == "templates"]


def test_shipped_templates_are_found() -> None:
    assert {"sequential", "items", "compact", "titles"} <= {file.name for file in find_shipped()}


@pytest.mark.parametrize("file", find_shipped(), ids=lambda file: file.name)
def test_every_shipped_template_renders(file: RecipeFile) -> None:
    assert file.about
    templates = read_templates(file.path)
    assert templates
    for template in templates:
        check_template(template, str(file.path))


def check_template(template: Template, source: str) -> None:
    task = TASKS[template.task]
    fields = {**task.input_fields, **task.target_fields}
    values = {
        name: SidText("<a_1><b_2>") if fields[name].trusted else f"the {name} <a_7>"
        for name in template.fields
    }
    prompt, target = render_template(template, values, max_text_characters=60, source=source)
    assert prompt.text and target.text
    for name in set(template.fields):
        value = values[name]
        assert value in prompt.text + target.text, f"{template.id} never shows {name}"
        if not fields[name].trusted:
            assert value in [r.text[a:b] for r in (prompt, target) for a, b in r.spans]
    empty = {name: "" if name in template.optional else values[name] for name in values}
    prompt, target = render_template(template, empty, max_text_characters=60, source=source)
    assert prompt.text and target.text


def test_enough_wordings() -> None:
    templates = [t for file in find_shipped() for t in read_templates(file.path)]
    assert len({t.id for t in templates}) == len(templates)
    assert len({(t.input, t.target) for t in templates}) == len(templates)
    standard = [t for name in ("sequential", "items") for t in read_templates(find_file(name).path)]
    by_task = {task: [t for t in standard if t.task == task] for task in PromptsRecipe().tasks}
    assert len(by_task["sequential"]) >= 5
    assert len(by_task["item-to-sid"]) >= 3
    assert len(by_task["sid-to-item"]) >= 3
    assert all(any(t.mark == "unseen" for t in templates) for templates in by_task.values())
    assert sum(t.recommend for t in standard) == 1


def find_file(name: str) -> RecipeFile:
    return next(file for file in find_shipped() if file.name == name)


@pytest.mark.parametrize("name", ["standard", "small-decoder"])
def test_shipped_recipes_build(name: str) -> None:
    library = build_library(read_recipe(PromptsRecipe, name, kind="prompts"))
    assert library.templates[library.recommend].template.recommend
    for task in library.tasks:
        seen = library.find_seen(task)
        assert seen
        assert all(library.templates[place].template.mark == "seen" for place in seen)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = write_templates(tmp_path / "mine.yaml", SEQUENTIAL)
    library = build_library(PromptsRecipe(templates=(mine,), tasks={"sequential": 1}))
    assert [compiled.template.id for compiled in library.templates] == ["mine"]


def test_faults_against_the_task_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    write_templates(
        path,
        SEQUENTIAL | {"id": "a", "task": "sequentail"},
        SEQUENTIAL | {"id": "b", "fields": ["titel", "sid"], "input": "{{ titel }}"},
        SEQUENTIAL | {"id": "c", "input": "{{ history|upper }}"},
        SEQUENTIAL | {"id": "d", "input": "{{ history }} {{ sid }}"},
        SEQUENTIAL | {"id": "e", "input": "{{ history"},
    )
    with pytest.raises(TemplateError) as caught:
        read_templates(path)
    message = str(caught.value)
    assert f"{path}: 5 problems" in message
    assert "template 'a': unknown task 'sequentail'; did you mean 'sequential'?" in message
    assert "template 'b': input: unknown field 'titel'; known: history, history_titles" in message
    assert "template 'c': input: field 'history' holds semantic ids, and no filter" in message
    assert "template 'd': input: unknown field 'sid'" in message  # a prompt that shows its answer
    assert "template 'e': input: line 1 is not valid Jinja" in message


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    write_templates(path, SEQUENTIAL, kind="prompts")
    with pytest.raises(RecipeError, match="is of kind 'prompts', but 'templates' is needed"):
        read_templates(path)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"tasks": {"sequentail": 1}}, "unknown task 'sequentail'; did you mean 'sequential'"),
        ({"templates": ("sequentail",)}, "unknown templates recipe 'sequentail'; did you mean"),
        ({"only": ("compact-sequentail",)}, "unknown template 'compact-sequentail'; did you mean"),
        ({"recommend_template": "nope"}, "unknown template 'nope'"),
    ],
)
def test_unknown_names(values: dict[str, object], fault: str) -> None:
    start = PromptsRecipe(templates=("compact",)).model_dump()
    with pytest.raises(RecipeError, match=fault):
        build_library(PromptsRecipe.model_validate(start | values))


def test_only_keeps_the_named_templates() -> None:
    library = build_library(
        PromptsRecipe(
            tasks={"sequential": 1},
            only=("sequential-predict",),
            recommend_template="sequential-continue-codes",
        )
    )
    ids = [compiled.template.id for compiled in library.templates]
    assert sorted(ids) == ["sequential-continue-codes", "sequential-predict"]
    assert ids[library.recommend] == "sequential-continue-codes"


def test_a_task_without_template() -> None:
    with pytest.raises(TemplateError, match="no template marked seen for task 'item-to-sid'"):
        build_library(PromptsRecipe(templates=("sequential",), tasks={"item-to-sid": 1}))


def test_one_recommend_template_exactly() -> None:
    with pytest.raises(TemplateError, match="it is: none; set recommend_template"):
        build_library(PromptsRecipe(templates=("titles",), tasks={"sequential": 1}))
    with pytest.raises(TemplateError, match="it is: sequential-chosen-so-far, compact-sequential"):
        build_library(PromptsRecipe(templates=("sequential", "compact"), tasks={"sequential": 1}))


@pytest.mark.parametrize("name", ["sequential-what-comes-after", "item-to-sid-title"])
def test_a_template_that_cannot_recommend(name: str) -> None:
    with pytest.raises(TemplateError, match=f"{name!r} cannot be used for recommendation"):
        build_library(PromptsRecipe(recommend_template=name))


def test_an_id_twice(tmp_path: Path) -> None:
    one = write_templates(tmp_path / "one.yaml", SEQUENTIAL)
    two = write_templates(tmp_path / "two.yaml", SEQUENTIAL | {"input": "{{ history }}!"})
    with pytest.raises(
        TemplateError, match=r"template id 'mine' is in .*one\.yaml and in .*two\.yaml"
    ):
        build_library(PromptsRecipe(templates=(one, two), tasks={"sequential": 1}))

"""All shipped families together: how many wordings there are, that they differ, what docs say."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from genrec.prompts.library import build_library, read_templates
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.tasks import all_tasks
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.recipe import find_folder, list_recipes, read_recipe, read_yaml

FEWEST = 150


@cache
def read_families() -> dict[str, tuple[Template, ...]]:
    """The templates of each file of kind templates, by walking the folder."""
    paths = sorted(find_folder("prompts").rglob("*.yaml"))
    return {
        path.stem: read_templates(path)
        for path in paths
        if read_yaml(path).get("kind") == "templates"
    }


def list_templates() -> list[Template]:
    return [template for templates in read_families().values() for template in templates]


def test_there_are_enough_templates() -> None:
    assert len(list_templates()) >= FEWEST
    assert len(read_families()) >= 20


def test_no_id_and_no_input_comes_twice() -> None:
    ids = Counter(template.id for template in list_templates())
    assert [name for name, times in ids.items() if times > 1] == []
    inputs = Counter(" ".join(template.input.split()) for template in list_templates())
    assert [text for text, times in inputs.items() if times > 1] == []


@pytest.mark.parametrize("family", read_families())
def test_every_family_trains_and_keeps_something_back(family: str) -> None:
    templates = read_families()[family]
    assert {template.mark for template in templates} == {"seen", "unseen"}
    assert all(template.source.strip() for template in templates)


def test_no_task_comes_from_two_modules() -> None:
    tables = [
        table
        for name, table in vars(all_tasks).items()
        if name.endswith("_TASKS") and isinstance(table, dict)
    ]
    assert len(tables) > 10
    assert sum(map(len, tables)) == len(TASKS)
    assert {template.task for template in list_templates()} == TASKS.keys()


def test_a_name_means_one_prompts_recipe_or_one_family() -> None:
    names = Counter(r.name for r in list_recipes() if r.kind in ("prompts", "templates"))
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("name", [r.name for r in list_recipes() if r.kind == "prompts"])
def test_every_prompts_recipe_builds(name: str) -> None:
    library = build_library(read_recipe(PromptsRecipe, name, kind="prompts"))
    recommend = library.templates[library.recommend].template
    assert (recommend.task, recommend.mark) == ("sequential", "seen")


def test_every_task_is_in_a_recipe() -> None:
    recipes = [r for r in list_recipes() if r.kind == "prompts"]
    used = {
        task
        for recipe in recipes
        for task in read_recipe(PromptsRecipe, recipe.path, kind="prompts").tasks
    }
    assert used == TASKS.keys()


def describe_family(name: str) -> str:
    """The family's row of the table in docs/prompts.md."""
    templates = read_families()[name]
    tasks = sorted({template.task for template in templates})
    fields = sorted({field for template in templates for field in template.fields})
    kept_back = sum(template.mark == "unseen" for template in templates)
    return (
        f"| `{name}` | {', '.join(f'`{task}`' for task in tasks)} | {len(templates)} | {kept_back} "
        f"| {' '.join(f'`{field}`' for field in fields)} |"
    )


def test_the_page_lists_every_family_as_it_is(repository: Path) -> None:
    lines = (repository / "docs" / "prompts.md").read_text(encoding="utf-8").splitlines()
    expected = [describe_family(name) for name in read_families()]
    start = lines.index("| family | tasks | wordings | kept back | fields |")
    end = next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))
    table = lines[start + 2 : end]
    assert table == expected, "paste:\n" + "\n".join(expected)
    total = len(list_templates())
    kept_back = sum(template.mark == "unseen" for template in list_templates())
    assert (
        f"{total} wordings in {len(read_families())} families; {kept_back} of them are kept back."
        in lines
    )


def test_the_page_knows_every_recipe(repository: Path) -> None:
    page = (repository / "docs" / "prompts.md").read_text(encoding="utf-8")
    for recipe in list_recipes():
        if recipe.kind == "prompts":
            assert f"`{recipe.name}`" in page, recipe.name

"""The recipe's own bounds; loading it must stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genrec.errors import RecipeError
from genrec.prompts.recipe import PromptsRecipe, TemplateFile
from genrec.recipe import list_recipes, parse_recipe, read_recipe


def test_loading_recipes_loads_nothing_heavy() -> None:
    code = (
        "import sys, genrec.prompts.recipe; "
        "heavy = {'torch', 'transformers', 'datasets', 'polars', 'jinja2'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_keys_get_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="max_histroy: unknown key; did you mean 'max_history'"):
        parse_recipe(PromptsRecipe, {"max_histroy": 3})


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"tasks": {"sequential": -1}}, "times of sequential must be from 0 to 1000"),
        ({"tasks": {"sequential": 0}}, "at least one task must be written"),
        ({"targets": "first"}, "targets: Input should be 'sliding' or 'last'"),
        ({"max_history": 0}, "max_history: Input should be greater than or equal to 1"),
        ({"templates": []}, "templates: "),
    ],
)
def test_values_out_of_bounds(values: dict[str, object], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parse_recipe(PromptsRecipe, values)


def test_a_template_file_with_an_unknown_key() -> None:
    with pytest.raises(RecipeError, match=r"templates.0.inptu: unknown key; did you mean 'input'"):
        parse_recipe(TemplateFile, {"templates": [{"inptu": "x"}]})


def test_every_shipped_prompts_recipe_parses() -> None:
    names = [recipe.name for recipe in list_recipes() if recipe.kind == "prompts"]
    assert {"standard", "small-decoder"} <= set(names)
    for name in names:
        assert isinstance(read_recipe(PromptsRecipe, name, kind="prompts"), PromptsRecipe)


def test_the_standard_recipe_is_the_default() -> None:
    standard = read_recipe(PromptsRecipe, "standard", kind="prompts")
    assert standard.model_copy(update={"max_history": None}) == PromptsRecipe()

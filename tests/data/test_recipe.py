from __future__ import annotations

import subprocess
import sys

import pytest

from genrec.data.recipe import DataRecipe, parse_moment
from genrec.errors import RecipeError
from genrec.recipe import parse_recipe


def test_defaults_make_a_recipe() -> None:
    assert DataRecipe().source == "synthetic"
    assert DataRecipe().moments is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sourse": "table"}, "did you mean 'source'"),
        ({"columns": {"user": "uid"}}, "columns: unknown 'user', did you mean 'user_id'"),
        ({"item_columns": {"text": "body"}}, "'text' is a column that genrec writes"),
        ({"text_fields": ["titel"]}, "unknown 'titel', did you mean 'title'"),
        ({"text_fields": []}, "text_fields"),
        ({"encoding": "utf-9"}, "'utf-9' is none that Python knows"),
        ({"valid_fraction": 0.5, "test_fraction": 0.6}, "must leave something to train on"),
        ({"split": "temporal", "valid_from": 1.0}, "go together"),
        ({"split": "temporal", "valid_from": 2, "test_from": 1}, "must lie before test_from"),
        ({"split": "temporal", "valid_from": "May", "test_from": 1}, "ISO date like 2024-05-01"),
        ({"valid_from": 1, "test_from": 2}, "need split: temporal"),
        ({"k_core_users": -1}, "k_core_users"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(DataRecipe, values)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(RecipeError, match=r"(?s)unknown 'titel'.*utf-9.*something to train on"):
        parse_recipe(
            DataRecipe,
            {
                "text_fields": ["titel"],
                "encoding": "utf-9",
                "valid_fraction": 0.9,
                "test_fraction": 0.9,
            },
        )


def test_extra_columns_may_be_text() -> None:
    recipe = DataRecipe(item_columns={"colour": "color"}, text_fields=("title", "colour"))
    assert recipe.text_fields == ("title", "colour")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (86400, 86400.0),
        ("86400", 86400.0),
        ("1970-01-02", 86400.0),
        ("1970-01-02T01:00:00+01:00", 86400.0),
        ("1970-01-02 00:00:00.5", 86400.5),
    ],
)
def test_moments_are_utc(text: float | str, seconds: float) -> None:
    assert parse_moment(text) == seconds


def test_recipe_class_loads_neither_polars_nor_torch() -> None:
    code = "import sys, genrec.data.recipe; print({'polars', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

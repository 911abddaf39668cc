"""What the base and train recipes refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genrec.errors import RecipeError
from genrec.recipe import parse_recipe
from genrec.train.recipe import BaseRecipe, TrainRecipe


def test_unknown_key_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="learning_rate"):
        parse_recipe(TrainRecipe, {"learning_rat": 1e-3})


@pytest.mark.parametrize("name", ["eval_every", "save_every"])
def test_intervals_are_whole_updates_or_shares(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} 2.5 must be a whole number of updates"):
        parse_recipe(TrainRecipe, {name: 2.5})
    assert getattr(parse_recipe(TrainRecipe, {name: 20}), name) == 20
    assert getattr(parse_recipe(TrainRecipe, {name: 0.25}), name) == 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 100, "heads": 3}, "must be an even multiple of heads 3"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3 must divide heads 4"),
        ({"block_tokens": 128, "max_positions": 64}, "block_tokens 128 must not exceed"),
    ],
)
def test_base_shapes_that_cannot_be_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(BaseRecipe, values)


def test_recipes_load_no_torch() -> None:
    code = (
        "import sys, genrec.train.recipe; "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

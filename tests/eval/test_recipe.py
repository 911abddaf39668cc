from __future__ import annotations

import subprocess
import sys

import pytest

from genrec.errors import RecipeError
from genrec.eval.metrics import Metric
from genrec.eval.recipe import EvalRecipe
from genrec.recipe import parse_recipe, read_recipe


def test_the_defaults_are_the_shipped_recipe(repository):
    shipped = read_recipe(EvalRecipe, repository / "eval" / "leave-last-out.yaml", kind="eval")
    assert shipped == EvalRecipe()


def test_metrics_are_kept_as_they_print_and_once():
    recipe = parse_recipe(EvalRecipe, {"metrics": ["ndcg@10", "HR@5", "nDCG@10"]})
    assert recipe.metrics == ("NDCG@10", "HR@5")
    assert recipe.parsed_metrics == (Metric("NDCG", 10), Metric("HR", 5))
    assert recipe.depth == 10


def test_systems_are_kept_once():
    recipe = parse_recipe(EvalRecipe, {"systems": ["markov", "markov", "popularity"]})
    assert recipe.systems == ("markov", "popularity")


def test_all_unknown_metrics_are_named_at_once():
    with pytest.raises(RecipeError, match=r"(?s)'NDGC@10' is not known.*'Luck@3' is not known"):
        parse_recipe(EvalRecipe, {"metrics": ["NDGC@10", "HR@5", "Luck@3"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": ["HR@5"]}, "did you mean 'metrics'"),
        ({"metrics": []}, "metrics"),
        ({"split": "train"}, "split"),
        ({"max_users": 1}, "max_users"),
        ({"confidence": 95}, "confidence"),
        ({"n_bootstrap": 10}, "n_bootstrap"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(EvalRecipe, values)


def test_the_recipe_loads_nothing_heavy():
    code = (
        "import sys, genrec.eval.recipe; "
        "heavy = {'torch', 'transformers', 'scipy', 'polars', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

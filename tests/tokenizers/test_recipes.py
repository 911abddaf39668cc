from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genrec.errors import RecipeError
from genrec.recipe import Recipe, parse_recipe, read_recipe, read_yaml
from genrec.tokenizers.embedding.encoder import ENCODERS
from genrec.tokenizers.quantizers.quantizer import QUANTIZERS, build_quantizer
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe

CLASSES: dict[str, type[Recipe]] = {"embed": EmbedRecipe, "tokenize": TokenizeRecipe}


def test_every_shipped_recipe_is_built(repository: Path) -> None:
    files = sorted((repository / "tokenizers").rglob("*.yaml"))
    assert len(files) >= 4
    built = set()
    for file in files:
        values = read_yaml(file)
        recipe = read_recipe(CLASSES[values["kind"]], file, kind=values["kind"])
        assert values["about"]
        if isinstance(recipe, TokenizeRecipe):
            build_quantizer(recipe, 32)
            built.add(recipe.quantizer)
        else:
            assert isinstance(recipe, EmbedRecipe)
            built.add(recipe.encoder)
    # A vocabulary made elsewhere has no recipe: `genrec tokenize import` makes it.
    assert built | {"imported"} == {*ENCODERS, *QUANTIZERS}


def test_every_shipped_value_is_explained(repository: Path) -> None:
    for file in sorted((repository / "tokenizers").rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        bare = [
            line
            for line in lines
            if line.strip() and not line.startswith(("kind:", "about:")) and "#" not in line
        ]
        assert not [line for line in bare if not line.endswith(":")], file


def test_defaults_are_what_ships(repository: Path) -> None:
    folder = repository / "tokenizers"
    assert read_recipe(TokenizeRecipe, folder / "rqvae.yaml") == TokenizeRecipe()
    assert read_recipe(EmbedRecipe, folder / "lsa.yaml") == EmbedRecipe()


def test_misspelt_keys_get_a_suggestion() -> None:
    values = {"rqvae": {"latent_sise": 3}, "codebook_size": [4]}
    with pytest.raises(RecipeError, match=r"did you mean 'latent_size'") as caught:
        parse_recipe(TokenizeRecipe, values)
    assert "did you mean 'codebook_sizes'" in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        (TokenizeRecipe, {"codebook_sizes": [4] * 27}, "27 levels.* there are 26"),
        (TokenizeRecipe, {"codebook_sizes": []}, "codebook_sizes"),
        (TokenizeRecipe, {"codebook_sizes": [4, 0]}, r"codebook_sizes\.1"),
        (TokenizeRecipe, {"rqvae": {"valid_share": 1.0}}, r"rqvae\.valid_share"),
        (EmbedRecipe, {"lsa": {"word_ngrams": [2, 1]}}, "word_ngrams must be"),
        (EmbedRecipe, {"lsa": {"char_ngrams": [0, 3]}}, "char_ngrams must be"),
        (EmbedRecipe, {"lsa": {"dimensions": 0}}, r"lsa\.dimensions"),
    ],
)
def test_bad_values_are_named(
    recipe: type[Recipe], values: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe, values)


def test_recipes_load_nothing_heavy() -> None:
    code = (
        "import sys, genrec.tokenizers.recipe; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Recipes: parsing, overrides, suggestions, finding, digests."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from genrec.errors import RecipeError
from genrec.recipe import (
    Recipe,
    apply_overrides,
    expand_path,
    find_choice,
    find_folder,
    find_recipe,
    list_recipes,
    parse_recipe,
    read_recipe,
    read_yaml,
    recipe_digest,
    strip_header,
    suggest_name,
)


class Inner(BaseModel):
    model_config = {"extra": "forbid", "frozen": True}
    width: int = 3


class Small(Recipe):
    epochs: int = Field(default=1, ge=1)
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()


class Needy(Recipe):
    path: str


def test_parse_gives_defaults_and_values() -> None:
    assert parse_recipe(Small, {"epochs": 4}) == Small(epochs=4)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Small().epochs = 3  # type: ignore[misc]


def test_unknown_keys_are_all_reported_with_suggestions() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(Small, {"epoch": 4, "inner": {"widht": 1}, "zzz": 1}, source="mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml: 3 problems")
    assert "epoch: unknown key; did you mean 'epochs'?" in message
    assert "inner.widht: unknown key; did you mean 'width'?" in message
    assert "zzz: unknown key; known: epochs, inner, parts, seed" in message


def test_unknown_keys_inside_lists_get_suggestions() -> None:
    with pytest.raises(RecipeError, match=r"parts\.0\.wdith: unknown key; did you mean 'width'"):
        parse_recipe(Small, {"parts": [{"wdith": 1}]})


def test_bad_values_name_value_and_rule() -> None:
    with pytest.raises(RecipeError, match=r"epochs: .*greater than or equal to 1 \(got 0\)"):
        parse_recipe(Small, {"epochs": 0})


def test_missing_values_are_named() -> None:
    with pytest.raises(RecipeError, match="path: required, but not given"):
        parse_recipe(Needy, {})


def test_digest_follows_values_only() -> None:
    assert recipe_digest(Small(epochs=2)) == recipe_digest(parse_recipe(Small, {"epochs": 2}))
    assert recipe_digest(Small(epochs=2)) != recipe_digest(Small(epochs=3))


def test_overrides_reach_into_sections_and_leave_the_source_alone() -> None:
    source = {"train": {"epochs": 1}}
    merged = apply_overrides(source, ["train.epochs=3", "train.rates=[1, 2]", "name=x=y"])
    assert merged == {"train": {"epochs": 3, "rates": [1, 2]}, "name": "x=y"}
    assert source == {"train": {"epochs": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "must be written key=value"),
        ("=3", "must be written key=value"),
        ("name.x=3", "'name' is a value, not a section"),
        ("name=[1", "is not a YAML value"),
    ],
)
def test_faulty_overrides_are_explained(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        apply_overrides({"name": "a"}, [override])


def test_choices_by_name_and_by_module() -> None:
    assert find_choice("encoder", "lsa", {"lsa": 1}) == 1
    assert find_choice("encoder", "json:dumps", {"lsa": 1})  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lsb", "unknown encoder 'lsb'; did you mean 'lsa'"),
        ("nothing.here:x", "cannot be imported"),
        ("json:nothing", "cannot be imported"),
    ],
)
def test_unknown_choices_are_explained(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find_choice("encoder", name, {"lsa": 1})


def test_suggestion_lists_what_is_known() -> None:
    assert suggest_name("qqq", ["b", "a"]) == "known: a, b"
    assert suggest_name("qqq", []) == "none are known"


def test_paths_fill_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_DATA", "/srv/data")
    assert expand_path("${GENREC_DATA}/beauty") == Path("/srv/data/beauty")
    assert expand_path("~/x") == Path.home() / "x"
    monkeypatch.delenv("GENREC_DATA")
    with pytest.raises(RecipeError, match="needs the environment variable GENREC_DATA"):
        expand_path("${GENREC_DATA}/beauty")


def test_reading_a_file_strips_the_header_and_applies_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("kind: train\nabout: x\nepochs: 2\n")
    assert read_recipe(Small, path, ["epochs=5"], kind="train") == Small(epochs=5)
    assert strip_header(read_yaml(path)) == {"epochs": 2}
    with pytest.raises(RecipeError, match="is of kind 'train', but 'eval' is needed"):
        read_recipe(Small, path, kind="eval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"- 1\n", "must be a mapping of keys to values, not list"),
        (b"a: \xff\xfe", "is not UTF-8 text"),
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_an_unreadable_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path)


def test_unknown_recipes_get_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'quickstrat'; did you mean 'quickstart'"):
        find_recipe("quickstrat")
    with pytest.raises(RecipeError, match="does not exist; `genrec recipes list`"):
        find_recipe("nowhere.yaml")


def test_an_ambiguous_name_lists_the_full_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, *_ = list_recipes()
    twin = tmp_path / "twin.yaml"
    twin.write_text("kind: other\n")
    files = [(first.name, first.path), (first.name, twin)]
    monkeypatch.setattr("genrec.recipe._find_files", lambda: files)
    with pytest.raises(RecipeError, match=f"could be any of: .*other/{first.name}"):
        find_recipe(first.name)
    assert find_recipe(f"other/{first.name}") == twin


def test_a_missing_folder_is_explained() -> None:
    with pytest.raises(RecipeError, match="recipe folder 'nowhere' is missing"):
        find_folder("nowhere")

"""The families beyond P5's, rendered and written: every wording, no held-out word, what is off."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import load_from_disk

from genrec.data.dataset import Dataset, load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.prompts.corpus import Corpus, read_corpus
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import plan_train
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.recipe import read_recipe

from .complete_data import EXTRA, HELD_WORD, N_ITEMS, find_walk, make_complete, write_ids
from .conftest import sid_of
from .rich_corpus import render_rows

FAMILIES = (
    "lcrec-fusion", "lcrec-search", "lcrec-preference", "ulmrec", "gmc", "openp5", "amazon-m2",
    "kalm4rec", "query", "complementary", "weak-users",
)  # fmt: skip
RECIPES = (
    "lcrec-prompts", "ulmrec-prompts", "gmc-prompts", "openp5-prompts", "amazon-m2-prompts",
    "cold-users-prompts", "search-prompts",
)  # fmt: skip


def read_values(name: str) -> PromptsRecipe:
    return read_recipe(PromptsRecipe, name, kind="prompts")


@pytest.fixture(scope="module")
def recipe() -> PromptsRecipe:
    """All the families at once, in every task that the recipes write."""
    tasks = {task: 1.0 for name in RECIPES for task in read_values(name).tasks}
    return PromptsRecipe(
        tasks=tasks, templates=("sequential", "items", *FAMILIES), candidates=6, weak_history=9
    )


@pytest.fixture(scope="module")
def library(recipe: PromptsRecipe) -> Library:
    return build_library(recipe)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    root = tmp_path_factory.mktemp("complete")
    dataset = make_complete(root / "made")
    write_ids(root, list(dataset.item_ids))
    write_ids(root, dataset.users["user_id"].to_list(), users=True)
    return root, dataset


@pytest.fixture(scope="module")
def corpus(complete: tuple[Path, Dataset], recipe: PromptsRecipe) -> Corpus:
    root, dataset = complete
    return read_corpus(recipe, dataset, root / "tokenizer", root / "users")[0]


def find_ours(library: Library) -> list[int]:
    return [place for place, family in enumerate(library.families) if family in FAMILIES]


def test_every_wording_renders_on_complete_data(corpus: Corpus, library: Library) -> None:
    item_of = {sid_of(item): item for item in range(N_ITEMS)}
    for place in find_ours(library):
        template = library.templates[place].template
        rows = render_rows(corpus, library, place)
        assert rows, f"{template.id} has no row"
        for row in rows:
            prompt, target = str(row["prompt"]), str(row["target"])
            assert prompt.strip() and target.strip(), template.id
            assert "{{" not in prompt + target and "{%" not in prompt + target
            assert not re.search(r"  |[:;,] *$", prompt.removesuffix(":")), (template.id, prompt)
            answers = template.target.startswith("{{ sid") and row["item_index"] >= 0
            if answers:
                assert item_of[target] == row["item_index"]
            if answers and "candidate" not in "".join(template.fields):
                assert target not in prompt, template.id


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_write_every_task(
    name: str, complete: tuple[Path, Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    root, dataset = complete
    values = read_values(name)
    library = build_library(values)
    corpus, _ = read_corpus(values, dataset, root / "tokenizer", root / "users")
    with caplog.at_level(logging.WARNING):
        plan = plan_train(corpus, library, values)
    assert "is off" not in caplog.text
    written = {library.templates[place].template.task for place in plan.template.tolist()}
    assert written == set(values.tasks)
    recommend = library.templates[library.recommend].template
    assert recommend.id == "sequential-chosen-so-far"


def test_no_row_holds_a_held_out_word(
    tmp_path: Path, complete: tuple[Path, Dataset], recipe: PromptsRecipe
) -> None:
    root, dataset = complete
    reviews = dataset.reviews()["review_text"]
    assert reviews.str.contains(HELD_WORD).sum() == 2 * dataset.n_users  # it is in the data
    out = tmp_path / "out"
    made = make_instructions(
        recipe, root / "made" / "data", root / "tokenizer", out, users=root / "users"
    )
    assert made.manifest.facts["tasks"]["train"].keys() == recipe.tasks.keys()
    rows = [row for split in ("train", "valid") for row in load_from_disk(str(out / split))]
    texts = "\n".join(row["prompt"] + row["target"] for row in rows)
    assert HELD_WORD not in texts.lower()
    for user in range(dataset.n_users):  # words of training reviews do occur
        assert f"word{chr(97 + user)}a" in texts
    asked = {(row["user_index"], row["item_index"]) for row in load_from_disk(str(out / "train"))}
    held = {(user, item) for user in range(dataset.n_users) for item in find_walk(user)[-2:]}
    assert asked.isdisjoint(held)


def test_a_users_words_never_come_from_the_choice_that_is_asked_for(corpus: Corpus) -> None:
    walks = corpus.walks
    library = build_library(
        PromptsRecipe(
            templates=("sequential", "kalm4rec", "lcrec-search"),
            tasks={"sequential": 1},
            keywords=9,
        )
    )
    wide = replace(corpus, recipe=corpus.recipe.model_copy(update={"keywords": 50}), _cache={})
    for place, family in enumerate(library.families):
        if family == "sequential":
            continue
        for row in render_rows(wide, library, place):
            user = int(str(row["user_index"]))
            walk = walks.item_index[walks.offsets[user] : walks.offsets[user + 1]].tolist()
            step = walk.index(row["item_index"])
            assert f"word{chr(97 + user)}{chr(97 + step)}" not in str(row["prompt"])


@pytest.mark.parametrize(
    ("lacking", "off"),
    [
        ("domain", "gmc-domain-mixed"),
        ("locale", "m2-item-de"),
        ("locale", "m2-title-ja"),
    ],
)
def test_a_missing_column_switches_wordings_off(
    lacking: str,
    off: str,
    tmp_path: Path,
    recipe: PromptsRecipe,
    library: Library,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = make_complete(tmp_path / "made", extra=tuple(set(EXTRA) - {lacking}))
    corpus, _ = read_corpus(recipe, dataset, write_ids(tmp_path, list(dataset.item_ids)))
    with caplog.at_level(logging.WARNING):
        plan = plan_train(corpus, library, recipe)
    used = {library.templates[place].template.id for place in np.unique(plan.template).tolist()}
    assert off not in used
    assert f"template {off!r} is off" in caplog.text
    assert {"m2-title-session", "search-looking-for", "query-search"} <= used
    assert not {"ulmrec-next-ids", "ulmrec-preference-of", "openp5-next-known-user"} & used


def test_without_reviews_and_ratings(
    tmp_path: Path, recipe: PromptsRecipe, library: Library
) -> None:
    dataset = make_complete(tmp_path / "made", said=False)
    corpus, _ = read_corpus(recipe, dataset, write_ids(tmp_path, list(dataset.item_ids)))
    plan = plan_train(corpus, library, recipe)
    used = {library.templates[place].template.id for place in np.unique(plan.template).tolist()}
    assert not {"ulmrec-review-author", "weak-user-rated", "weak-user-liked"} & used
    assert {"weak-user-few", "kalm4rec-retrieve", "fusion-ids-title"} <= used


def read_real(source: Path, root: Path, recipe: PromptsRecipe) -> Corpus:
    make_data(DataRecipe(source="table", path=str(source)), root / "data")
    dataset = load_dataset(root / "data")
    items = write_ids(root, list(dataset.item_ids))
    users = write_ids(root, dataset.users["user_id"].to_list(), users=True)
    return read_corpus(recipe, dataset, items, users)[0]


WORDLESS = {"title", "brand", "categories", "description", "query", "candidate_keywords"}
"""Fields that items without any text leave empty, beside all that show titles."""


def find_lacking(corpus: Corpus, fields: set[str]) -> set[str]:
    """The fields that a real data set has no value for: no domain, no locale, perhaps no text."""
    lacking = {name for name in fields if re.search("domain|locale|_(en|de|ja|es|fr|it)$", name)}
    if not any(corpus.texts("title")):
        titles = {name for name in fields if "title" in name and name != "review_title"}
        lacking |= WORDLESS | titles | {"favourite_kinds", "favourite_brands"}
    return lacking


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon18-giftcards-reviews", "amazon14-musical-reviews"])
def test_wordings_render_on_real_reviews_where_they_can(
    name: str,
    tmp_path: Path,
    recipe: PromptsRecipe,
    library: Library,
    find_real_data: Callable[[str], Path],
) -> None:
    corpus = read_real(find_real_data(name), tmp_path, recipe)
    for place in find_ours(library):
        template = library.templates[place].template
        needed = set(template.fields) - set(template.optional)
        rows = render_rows(corpus, library, place)
        assert bool(rows) != bool(needed & find_lacking(corpus, needed)), template.id
        assert all(str(row["prompt"]).strip() and str(row["target"]).strip() for row in rows)


@pytest.mark.slow
def test_a_merged_table_of_beauty_and_sports(
    tmp_path: Path, find_real_data: Callable[[str], Path], repository: Path
) -> None:
    """What docs/prompts.md says of several domains is run as it stands there."""
    for name in ("amazon14-beauty", "amazon14-sports"):
        (tmp_path / name).symlink_to(find_real_data(name))
    page = (repository / "docs" / "prompts.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (values,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "merged.yaml").write_text(values)
    recipe = read_recipe(DataRecipe, tmp_path / "merged.yaml", [f"path={tmp_path / 'merged'}"])
    make_data(recipe, tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.n_users == 1625
    gmc = read_values("gmc-prompts").model_copy(update={"max_rows": 4000})
    made = make_instructions(
        gmc, tmp_path / "data", write_ids(tmp_path, list(dataset.item_ids)), tmp_path / "out"
    )
    assert made.manifest.facts["tasks"]["train"].keys() == set(gmc.tasks)
    rows = load_from_disk(str(tmp_path / "out" / "train"))
    domains = pl.Series(rows["domain"]).value_counts()
    assert dict(domains.iter_rows()).keys() == {"Beauty", "Sports"}
    transfers = [row for row in rows if row["template"] == "gmc-domain-transfer"]
    domain_of = dict(zip(map(sid_of, range(dataset.n_items)), dataset.items["domain"], strict=True))
    assert len(transfers) > 20
    for row in transfers:
        shown = re.findall(r"<a_\d+><b_\d+><c_\d+>", row["prompt"])
        assert {domain_of[sid] for sid in shown} == {"Beauty", "Sports"} - {row["domain"]}

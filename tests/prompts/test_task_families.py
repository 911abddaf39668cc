"""The shipped families of P5, click-through, examples, reasons and lists: every wording renders."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import write_artifact
from genrec.data.dataset import load_dataset
from genrec.prompts.corpus import Corpus, read_corpus
from genrec.prompts.library import Library, build_library
from genrec.prompts.plan import plan_train
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import SidText
from genrec.prompts.step import make_instructions
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.explanations import find_explanation
from genrec.recipe import Recipe, read_recipe

from .conftest import WriteData, WriteTokenizer, sid_of
from .rich_corpus import make_corpus, make_events, make_walks, render_rows

FAMILIES = (
    "p5-rating", "p5-sequential", "p5-explanation", "p5-review", "p5-direct", "ctr",
    "rating-shots", "explain-recommendation", "pairwise", "listwise",
)  # fmt: skip
RATED = ("rating", "rating-check", "rating-shots", "review-rating", "rating-explanation")
REVIEWED = ("review-title", "review-rating", "review-text", "explanation", "rating-explanation")


@pytest.fixture(scope="module")
def library() -> Library:
    return build_library(read_recipe(PromptsRecipe, "p5", kind="prompts"))


def find_ours(library: Library) -> list[int]:
    return [place for place, family in enumerate(library.families) if family in FAMILIES]


def test_the_families_are_many_and_partly_kept_back(library: Library) -> None:
    ours = [library.templates[place].template for place in find_ours(library)]
    assert len(ours) >= 85
    unseen = [template for template in ours if template.mark == "unseen"]
    assert 1 / 7 < len(unseen) / len(ours) < 1 / 4
    assert {library.families[place] for place in find_ours(library)} == set(FAMILIES)
    for family in FAMILIES:
        marks = {
            library.templates[place].template.mark
            for place in find_ours(library)
            if library.families[place] == family
        }
        assert marks == {"seen", "unseen"}, family
    assert set(library.tasks) >= set(RATED) | set(REVIEWED)


def test_wordings_differ(library: Library) -> None:
    inputs = {
        library.templates[place].template.id: library.templates[place].template.input
        for place in find_ours(library)
    }
    for (one, text), (other, another) in combinations(inputs.items(), 2):
        alike = difflib.SequenceMatcher(None, text, another, autojunk=False)
        assert alike.quick_ratio() < 0.9 or alike.ratio() < 0.85, f"{one} and {other} are too alike"


def test_every_template_renders_on_complete_data(library: Library) -> None:
    corpus = make_corpus(make_walks(), shots=2, candidates=6)
    for place in find_ours(library):
        check_rows(corpus, library, place, render_rows(corpus, library, place))


def check_rows(corpus: Corpus, library: Library, place: int, rows: list[dict[str, object]]) -> None:
    template = library.templates[place].template
    assert rows, f"{template.id} has no row"
    offered = any("candidate" in name or name in ("first", "second") for name in template.fields)
    for row in rows:
        prompt, target = str(row["prompt"]), str(row["target"]).strip()
        assert prompt.strip() and target, template.id
        assert "{{" not in prompt and "{%" not in prompt
        if not offered and template.target == "{{ sid }}":
            walk = find_walk(corpus, int(str(row["user_index"])))
            assert target not in prompt or walk.count(int(str(row["item_index"]))) > 1
        if template.target == " {{ answer }}":
            assert target in ("Yes", "No")


def find_walk(corpus: Corpus, user: int) -> list[int]:
    walks = corpus.walks
    row = walks.user_index.tolist().index(user)
    return walks.item_index[walks.offsets[row] : walks.offsets[row + 1]].tolist()


def test_free_answers_are_not_in_the_question(library: Library) -> None:
    corpus = make_corpus(make_walks(), events=make_distinct_events(96), shots=2)
    for place in find_ours(library):
        template = library.templates[place].template
        if not {"explanation", "review_text", "review_title"} & set(asked(library, place)):
            continue
        for row in render_rows(corpus, library, place):
            assert str(row["target"]).strip() not in str(row["prompt"]), template.id


def asked(library: Library, place: int) -> list[str]:
    return sorted(library.templates[place].target.names)


def make_distinct_events(n: int) -> pl.DataFrame:
    texts = [f"Number {place} shines over the whole room. Broke later." for place in range(n)]
    return make_events(n).with_columns(review_text=pl.Series(texts))


def test_data_without_ratings_and_reviews_switch_the_families_off(
    tmp_path: Path,
    library: Library,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = read_recipe(PromptsRecipe, "p5", kind="prompts")
    data = write_data(make_walks(30, 7, 5 * 8), n_items=40)
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        artifact = make_instructions(recipe, data, write_tokenizer(40), out)
    used = artifact.manifest.facts["templates"]
    for place in find_ours(library):
        template = library.templates[place].template
        needs_text = template.task in (*RATED, *REVIEWED)
        needs_user = "user_sid" in template.fields
        if needs_text or needs_user:
            assert template.id not in used
            if template.mark == "seen":
                assert f"template {template.id!r} is off" in caplog.text
    assert "user_sid; --users names a tokenizer of users)" in caplog.text
    assert {"pair-ids", "ctr-ids", "p5-next-choice-plain", "list-rank", "why-kind"} <= used.keys()
    assert artifact.manifest.facts["tasks"]["train"].keys() == (
        library.tasks.keys() - set(RATED) - set(REVIEWED)
    )


def test_passes_draw_other_rows_and_the_same_again(library: Library) -> None:
    corpus = make_corpus(make_walks(), candidates=6)
    for name in ("p5-next-choice-plain", "pair-ids", "list-rank", "ctr-ids", "shots-own"):
        ids = [compiled.template.id for compiled in library.templates]
        place = ids.index(name)
        first, again, other = (
            [row["prompt"] for row in render_rows(corpus, library, place, number)]
            for number in (0, 0, 1)
        )
        assert first == again and first != other


@pytest.fixture(scope="module")
def gift_cards(
    find_real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Corpus, pl.DataFrame]:
    from genrec.data.recipe import DataRecipe
    from genrec.data.step import make_data

    work = tmp_path_factory.mktemp("cards")
    source = find_real_data("amazon18-giftcards-reviews")
    make_data(DataRecipe(source="table", path=str(source)), work / "data")
    dataset = load_dataset(work / "data")
    with write_artifact(work / "tokenizer", step="tokenize", recipe=Recipe()) as out:
        sids = [sid_of(item) for item in range(dataset.n_items)]
        pl.DataFrame({"item_id": list(dataset.item_ids), "sid": sids}).write_parquet(
            out.path / "codes.parquet"
        )
    recipe = read_recipe(PromptsRecipe, "p5", kind="prompts")
    corpus, _ = read_corpus(recipe, dataset, work / "tokenizer")
    users = [SidText(f"<ua_{user}>") for user in range(dataset.n_users)]
    held = dataset.interactions.hstack(dataset.reviews()).filter(pl.col("split") != "train")
    return replace(corpus, user_sids=users), held


@pytest.mark.slow
def test_every_template_renders_on_real_reviews(
    library: Library, gift_cards: tuple[Corpus, pl.DataFrame]
) -> None:
    corpus, held = gift_cards
    train = {find_explanation(text) for text in corpus.event_texts("review_text")}
    secret = {find_explanation(text or "") for text in held["review_text"]} - train - {""}
    assert len(secret) > 300
    for place in find_ours(library):
        rows = render_rows(corpus, library, place)
        check_rows(corpus, library, place, rows)
        if asked(library, place) == ["explanation"]:
            assert secret.isdisjoint(str(row["target"]).strip() for row in rows)
    plan = plan_train(corpus, library, read_recipe(PromptsRecipe, "p5", kind="prompts"))
    written = Counter(library.templates[place].template.task for place in plan.template.tolist())
    assert written.keys() == library.tasks.keys()
    assert abs(written["pairwise"] / written["sequential"] - 0.25) < 0.05


def test_answers_have_fields_of_their_own() -> None:
    for name, task in TASKS.items():
        assert not task.input_fields.keys() & task.target_fields.keys(), name
        assert task.find_subjects(make_corpus(make_walks()), PromptsRecipe()).dtype == np.int64

"""The leak audit as a whole: it runs by default, fails the build, and says what it checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import load_artifact, write_artifact
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import LeakError
from genrec.prompts.corpus import Corpus, hold_out_valid
from genrec.prompts.recipe import PromptsRecipe, Template
from genrec.prompts.render import CleanText, clean_text
from genrec.prompts.step import make_instructions
from genrec.prompts.tasks import all_tasks, sequential
from genrec.prompts.tasks.task import Field, Task, always, sid_field
from genrec.types import IndexArray

from .conftest import FakeData, WriteData, WriteTokenizer, sid_of

N_ITEMS, N_USERS = 60, 40
REVIEW = "{} said of {} that it is better than all that came before it and worth every cent of it"
Leaky = Callable[..., Task]


def draw_walks(seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.permutation(N_ITEMS)[:8].tolist() for _ in range(N_USERS)]


def adapt(recipe: PromptsRecipe, **values: object) -> PromptsRecipe:
    return PromptsRecipe.model_validate(recipe.model_dump() | values)


@pytest.fixture
def titled(write_data: WriteData) -> Path:
    titles = [f"Item of the number {number}" for number in range(N_ITEMS)]
    return write_data(draw_walks(), N_ITEMS, titles=titles)


def test_a_clean_build_says_what_was_checked(
    tmp_path: Path, recipe: PromptsRecipe, titled: Path, write_tokenizer: WriteTokenizer
) -> None:
    artifact = make_instructions(recipe, titled, write_tokenizer(N_ITEMS), tmp_path / "out")
    facts = artifact.manifest.facts["audit"]
    assert facts["audit"] is True
    assert facts["train_rows"]["rows"] == artifact.manifest.facts["rows"]["train"]
    assert facts["valid_rows"]["rows"] == artifact.manifest.facts["rows"]["valid"]
    assert facts["train_rows"]["items_seen_in_rows"] > facts["train_rows"]["rows"]
    assert facts["time"]["users"] == N_USERS and facts["time"]["users_with_late_training"] == 0
    assert facts["ids"]["held_out_transitions"] > 20
    assert facts["sources"] == {"read_choices": [], "imported": []}


# Fields and tasks that give the held-out part away. They know it by looking at the data's files.
def find_held(corpus: Corpus, held: Sequence[int], subjects: IndexArray) -> list[int]:
    users = sequential.find_walkers(corpus, subjects)[0]
    return [held[user] for user in users.tolist()]


def show_held(held: Sequence[int], titles: bool) -> Field:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        texts = corpus.texts("title") if titles else corpus.sids
        return [texts[item] for item in find_held(corpus, held, subjects)]

    return Field(read, always, trusted=not titles)


def plant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Task, text: str, target: str
) -> dict[str, object]:
    """Recipe values under which the task, with this wording, is written besides sequential."""
    monkeypatch.setitem(all_tasks.TASKS, "planted", task)
    file = tmp_path / "planted.yaml"
    names = sorted({*task.input_fields, *task.target_fields})
    file.write_text(
        f"kind: templates\nabout: x\ntemplates:\n- {{id: planted, task: planted, source: x, "
        f"fields: [{', '.join(names)}], input: '{text}', target: '{target}'}}\n"
    )
    return {"tasks": {"sequential": 1, "planted": 1}, "templates": (str(file),)}


def build(
    recipe: PromptsRecipe, planted: dict[str, object], data: Path, tokenizer: Path, out: Path
) -> None:
    files = (recipe.templates[0], *planted["templates"])  # type: ignore[misc]
    make_instructions(adapt(recipe, **planted | {"templates": files}), data, tokenizer, out)


CHOSEN = {"sid": sid_field(sequential.find_chosen)}


@pytest.mark.parametrize("titles", [False, True])
@pytest.mark.parametrize("place", [-1, -2])
def test_a_task_that_shows_a_held_out_item(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    titles: bool,
    place: int,
) -> None:
    held = [walk[place] for walk in draw_walks()]
    task = Task(
        sequential.find_targets,
        sequential.find_walkers,
        {"next": show_held(held, titles)},
        CHOSEN,
    )
    planted = plant(monkeypatch, tmp_path, task, "{{ next }} then", "{{ sid }}")
    told = (
        r"template 'planted' shows held-out items in the prompt of 200 of 200 rows, such as item "
        r"'i\d+' of user 'u\d+'"
    )
    with pytest.raises(LeakError, match=told) as caught:
        build(recipe, planted, titled, write_tokenizer(N_ITEMS), tmp_path / "out")
    assert "audit=false writes all the same" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_task_that_asks_for_a_held_out_item(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = [walk[-1] for walk in draw_walks()]

    def find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
        users = sequential.find_walkers(corpus, subjects)[0]
        return users, np.array(find_held(corpus, held, subjects))

    task = Task(
        sequential.find_targets,
        find_owners,
        {"history": sequential.HISTORY_FIELDS["history"]},
        {"sid": show_held(held, titles=False)},
    )
    planted = plant(monkeypatch, tmp_path, task, "{{ history }} then", "{{ sid }}")
    with pytest.raises(LeakError) as caught:
        build(recipe, planted, titled, write_tokenizer(N_ITEMS), tmp_path / "out")
    message = str(caught.value)
    assert "in the answer of 200 of 200 rows" in message
    assert "in the question of 200 of 200 rows" in message


def test_a_held_out_item_among_wrong_candidates(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By chance it may be there; in every row it is a leak."""
    held = [walk[-1] for walk in draw_walks()]
    random = np.random.default_rng(5).integers(N_ITEMS, size=(N_USERS, 4))

    def offer(leaks: bool) -> Field:
        def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
            users = sequential.find_walkers(corpus, subjects)[0].tolist()
            own = [[held[user]] if leaks else [] for user in users]
            return [
                type(corpus.sids[0])(
                    "".join(corpus.sids[item] for item in [*random[user].tolist(), *more])
                )
                for user, more in zip(users, own, strict=True)
            ]

        return Field(read, always, trusted=True)

    for leaks in (False, True):
        task = Task(
            sequential.find_targets, sequential.find_walkers, {"candidates": offer(leaks)}, CHOSEN
        )
        planted = plant(monkeypatch, tmp_path, task, "{{ candidates }}?", "{{ sid }}")
        out = tmp_path / f"out-{leaks}"
        if leaks:
            with pytest.raises(LeakError, match="shows held-out items in the prompt of 200 of 200"):
                build(recipe, planted, titled, write_tokenizer(N_ITEMS), out)
        else:
            build(recipe, planted, titled, write_tokenizer(N_ITEMS), out)
            facts = load_artifact(out).manifest.facts["audit"]["train_rows"]
            counts = facts["held_out_among_wrong_candidates"]["planted prompt"]
            assert 0 < counts[0] < counts[1] / 4


def test_a_history_that_looks_ahead(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
        last = corpus.walks.offsets[1:][corpus.walks.owner[subjects]] - 1
        return [corpus.sids[item] for item in corpus.walks.item_index[last].tolist()]

    task = Task(
        sequential.find_targets,
        sequential.find_walkers,
        {"history_ahead": Field(read, always, trusted=True)},
        CHOSEN,
    )
    planted = plant(monkeypatch, tmp_path, task, "{{ history_ahead }} then", "{{ sid }}")
    told = (
        r"160 items in the prompt of template 'planted' were chosen only after the item that is "
        r"asked for, such as item 'i\d+'"
    )
    with pytest.raises(LeakError, match=told):
        build(recipe, planted, titled, write_tokenizer(N_ITEMS), tmp_path / "out")


def write_reviewed(out: Path) -> Path:
    """Data with a review of each choice, distinct but for one that a training review contains."""
    rows = [
        (user, item, "test" if place == 7 else "valid" if place == 6 else "train", float(place),
         ("So: " if (user, place) == (1, 0) else "") + REVIEW.format(
             f"User {user}", "all" if place in (0, 7) and user == 1 else f"item {item}"))
        for user, walk in enumerate(draw_walks()) for place, item in enumerate(walk)
    ]  # fmt: skip
    names = ["user_index", "item_index", "split", "timestamp", "review_text"]
    with write_artifact(out, step="data", recipe=FakeData()) as work:
        items = {"item_index": range(N_ITEMS), "item_id": [f"i{i}" for i in range(N_ITEMS)],
                 "title": [f"Item of the number {i}" for i in range(N_ITEMS)]}  # fmt: skip
        pl.DataFrame(items).write_parquet(work.path / "items.parquet")
        users = {"user_index": range(N_USERS), "user_id": [f"u{u}" for u in range(N_USERS)]}
        pl.DataFrame(users).write_parquet(work.path / "users.parquet")
        table = pl.DataFrame(rows, schema=names, orient="row").with_columns(review_title=pl.lit(""))
        table.write_parquet(work.path / "interactions.parquet")
    return out


@pytest.mark.parametrize("owned", [True, False])
def test_a_task_that_quotes_held_out_reviews(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    owned: bool,
) -> None:
    data = write_reviewed(tmp_path / "reviewed")
    texts = pl.read_parquet(data / "interactions.parquet")
    held = texts.filter(pl.col("split") == "test")["review_text"].to_list()
    trained = texts.filter(pl.col("split") == "train")["review_text"].to_list()

    def quote(reviews: list[str]) -> Field:
        def read(corpus: Corpus, template: Template, subjects: IndexArray) -> list[str]:
            # Cut, joined and in other letters, as a task may show it.
            return [
                CleanText("Said before: " + clean_text(reviews[row % len(reviews)], 80).upper())
                for row in range(len(subjects))
            ]

        return Field(read, always)

    def find_nobody(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
        return np.full(len(subjects), -1), np.full(len(subjects), -1)

    owners = sequential.find_walkers if owned else find_nobody
    good = Task(sequential.find_targets, owners, {"review": quote(trained)}, CHOSEN)
    planted = plant(monkeypatch, tmp_path, good, "{{ review }} by?", "{{ sid }}")
    tokenizer = write_tokenizer(N_ITEMS)
    build(recipe, planted, data, tokenizer, tmp_path / "good")
    facts = load_artifact(tmp_path / "good").manifest.facts["audit"]["train_rows"]
    assert facts["held_out_reviews_looked_for"] == 2 * N_USERS - 1  # one is a training one too
    bad = Task(sequential.find_targets, owners, {"review": quote(held)}, CHOSEN)
    planted = plant(monkeypatch, tmp_path, bad, "{{ review }} by?", "{{ sid }}")
    with pytest.raises(LeakError, match=r"195 rows quote a held-out review, such as template "
                       r"'planted': 'user \d+ said of item"):  # fmt: skip
        build(recipe, planted, data, tokenizer, tmp_path / "bad")


def test_a_pair_that_only_held_out_choices_join(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row about no user may show items that somebody chose both in training, or nobody at all."""

    def join(places: tuple[int, int]) -> Task:
        pairs = np.array([(walk[places[0]], walk[places[1]]) for walk in draw_walks()])

        def find_subjects(corpus: Corpus, recipe: PromptsRecipe) -> IndexArray:
            return np.arange(len(pairs))

        def find_owners(corpus: Corpus, subjects: IndexArray) -> tuple[IndexArray, IndexArray]:
            return np.full(len(subjects), -1), pairs[subjects, 1]

        return Task(
            find_subjects,
            find_owners,
            {"item": sid_field(lambda corpus, subjects: pairs[subjects, 0])},
            {"sid": sid_field(lambda corpus, subjects: pairs[subjects, 1])},
        )

    tokenizer = write_tokenizer(N_ITEMS)
    planted = plant(monkeypatch, tmp_path, join((4, 5)), "{{ item }} with", "{{ sid }}")
    build(recipe, planted, titled, tokenizer, tmp_path / "good")
    facts = load_artifact(tmp_path / "good").manifest.facts["audit"]["train_rows"]
    assert facts["pairs_without_user"] == N_USERS
    planted = plant(monkeypatch, tmp_path, join((5, 7)), "{{ item }} with", "{{ sid }}")
    with pytest.raises(
        LeakError, match=r"joins two items that only held-out choices join, in \d+ of"
    ):
        build(recipe, planted, titled, tokenizer, tmp_path / "bad")


def test_validation_rows_must_not_show_the_test_item(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tests = [walk[-1] for walk in draw_walks()]

    def hold_out_test(corpus: Corpus, dataset: object) -> Corpus:
        held = hold_out_valid(corpus, dataset)  # type: ignore[arg-type]
        items = held.walks.item_index.copy()
        items[held.walks.offsets[1:] - 1] = tests
        return replace(held, walks=replace(held.walks, item_index=items))

    monkeypatch.setattr("genrec.prompts.step.hold_out_valid", hold_out_test)
    with pytest.raises(LeakError, match="held-out items in the question of 40 of 40 rows"):
        make_instructions(recipe, titled, write_tokenizer(N_ITEMS), tmp_path / "out")


def test_without_the_audit_it_is_written_and_recorded(
    tmp_path: Path,
    recipe: PromptsRecipe,
    titled: Path,
    write_tokenizer: WriteTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = [walk[-1] for walk in draw_walks()]
    field = {"next": show_held(held, titles=False)}
    task = Task(sequential.find_targets, sequential.find_walkers, field, CHOSEN)
    planted = plant(monkeypatch, tmp_path, task, "{{ next }} then", "{{ sid }}")
    with caplog.at_level(logging.WARNING):
        build(adapt(recipe, audit=False), planted, titled, write_tokenizer(N_ITEMS), tmp_path / "o")
    assert "audit: false, so nothing looks for leaks" in caplog.text
    assert load_artifact(tmp_path / "o").manifest.facts["audit"] == {"audit": False}


def test_ids_in_a_text_from_data_are_no_items(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    walks = draw_walks()
    titles = [f"Hat {sid_of(walks[0][-1])} {number}" for number in range(N_ITEMS)]
    data = write_data(walks, N_ITEMS, titles=titles)
    titled = adapt(
        recipe,
        templates=(str(Path(recipe.templates[0]).with_name("titles.yaml")),),
        tasks={"sequential": 1},
        recommend_template="titles-and-ids",
    )
    make_instructions(titled, data, write_tokenizer(N_ITEMS), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon14-beauty", "amazon18-giftcards-reviews"])
def test_real_data_passes(
    tmp_path: Path,
    find_real_data: Callable[[str], Path],
    recipe: PromptsRecipe,
    write_tokenizer: WriteTokenizer,
    name: str,
) -> None:
    folder = find_real_data(name)
    source = {"interactions": str(folder / "interactions.parquet"),
              "items": str(folder / "items.parquet")}  # fmt: skip
    data = make_data(DataRecipe(source="table", **source), tmp_path / "data")
    ids = pl.read_parquet(data.path / "items.parquet")["item_id"].to_list()
    random = np.random.default_rng(0).permutation(len(ids)).tolist()
    tokenizer = write_tokenizer(item_ids=ids, sids=[sid_of(number) for number in random])
    artifact = make_instructions(recipe, data.path, tokenizer, tmp_path / "out")
    facts = artifact.manifest.facts["audit"]
    if name == "amazon18-giftcards-reviews":
        # The source lists reviews by product: ties stand in that order, which `ties` declares.
        assert facts["time"]["users_with_ties"] == 439
        assert 0.89 < facts["time"]["undecided_pairs_in_item_order"] / 1725 < 0.9
        assert "89.6% of 1,725 neighbouring ties" in facts["time"]["notes"][1]
    else:
        assert "notes" not in facts["time"]
        assert facts["ids"]["held_out_transitions"] > 19_000

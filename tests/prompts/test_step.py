"""The step as a whole: rows, leaks, sameness, and what bad input says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import Dataset, is_progress_bar_enabled, load_from_disk

from genrec.artifact import load_artifact, write_artifact
from genrec.errors import ArtifactError, DataError, RecipeError
from genrec.manifest import hash_file
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import HistoryPrompt
from genrec.prompts.step import make_instructions
from genrec.recipe import find_folder

from .conftest import TITLES, WriteData, WriteTokenizer, sid_of

WALKS = [[0, 1, 2, 3, 4], [4, 3, 1, 0], [2, 0, 3], [1, 2], [3]]


def adapt(recipe: PromptsRecipe, **values: object) -> PromptsRecipe:
    return PromptsRecipe.model_validate(recipe.model_dump() | values)


def load_rows(out: Path, split: str = "train") -> list[dict[str, object]]:
    rows = load_from_disk(str(out / split))
    assert isinstance(rows, Dataset)
    return rows.to_list()


def hash_files(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(out)): hash_file(path) for path in files}


def test_rows_of_every_task(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    out = tmp_path / "out"
    artifact = make_instructions(recipe, write_data(WALKS), write_tokenizer(), out)
    rows = load_rows(out)
    # Training choices: user 0 has three (two targets), user 1 two (one target), the others too few.
    assert artifact.manifest.facts["tasks"] == {
        "train": {"item-to-sid": 5, "sequential": 3, "sid-to-item": 4},  # one item has no title
        "valid": {"sequential": 3},
    }
    assert artifact.manifest.facts["rows"] == {"train": 12, "valid": 3}
    assert sum(artifact.manifest.facts["templates"].values()) == 12
    asked = sorted((r["user_index"], r["item_index"]) for r in rows if r["task"] == "sequential")
    assert asked == [(0, 1), (0, 2), (1, 3)]
    for row in rows:
        assert set(row) == {
            *("prompt", "prompt_spans", "target", "target_spans"),
            *("task", "template", "user_index", "item_index", "domain", "pass"),
        }
        check_row(row)
    assert not list(out.glob("*.arrow"))


def check_row(row: dict[str, object]) -> None:
    sid = sid_of(row["item_index"])
    if row["task"] == "sid-to-item":
        assert sid in row["prompt"] and not row["prompt_spans"]
        start, end = row["target_spans"][0]
        assert row["target"][start:end] == " ".join(
            TITLES[row["item_index"]].replace("\x00", "").split()
        )
    else:
        assert row["target"] == sid and row["target_spans"] == []
        assert bool(row["prompt_spans"]) == (row["task"] == "item-to-sid")
    assert (row["user_index"] == -1) == (row["task"] != "sequential")
    assert all(c.isprintable() for c in row["prompt"] + row["target"])


def test_no_held_out_item_is_ever_shown_or_asked_for(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    rng = np.random.default_rng(0)
    walks = [rng.permutation(100)[: rng.integers(3, 9)].tolist() for _ in range(40)]
    out = tmp_path / "out"
    make_instructions(recipe, write_data(walks, 100), write_tokenizer(100), out)
    item_of = {sid_of(item): item for item in range(100)}
    train = [row for row in load_rows(out) if row["task"] == "sequential"]
    assert len(train) == sum(len(walk) - 3 for walk in walks)
    for row in train:
        walk = walks[row["user_index"]]
        place = walk.index(row["item_index"])
        assert place < len(walk) - 2  # neither the test nor the validation item
        assert shown_items(row, item_of) == walk[:place]
    valid = load_rows(out, "valid")
    assert [row["user_index"] for row in valid] == list(range(40))
    for row in valid:
        walk = walks[row["user_index"]]
        assert row["item_index"] == walk[-2]
        assert shown_items(row, item_of) == walk[:-2]
        assert row["template"] == "sequential-chosen-so-far"
    pairs = {(row["user_index"], row["item_index"]) for row in train}
    assert pairs.isdisjoint((row["user_index"], row["item_index"]) for row in valid)


def shown_items(row: dict[str, object], item_of: dict[str, int]) -> list[int]:
    prompt = row["prompt"]
    text = prompt[prompt.index("<") : prompt.rindex(">") + 1]
    sids = [f"<a_{part}" for part in text.split("<a_")[1:]]
    return [item_of[sid] for sid in sids]


def test_same_seed_same_files_and_another_seed_others(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data, tokenizer = write_data([[i % 5, 1, 2, 3, 4, 0] for i in range(5)]), write_tokenizer()
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    make_instructions(recipe, data, tokenizer, first)
    make_instructions(recipe, data, tokenizer, again)
    make_instructions(adapt(recipe, seed=1), data, tokenizer, other)
    assert hash_files(first) == hash_files(again)
    assert load_rows(first) != load_rows(other)


def test_the_recommendation_prompt_is_the_validation_prompt(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    out = tmp_path / "out"
    wide = adapt(
        recipe,
        templates=(str(find_folder("prompts") / "titles.yaml"),),
        recommend_template="titles-and-ids",
        tasks={"sequential": 1},
        max_history=2,
        max_text_characters=8,
    )
    make_instructions(wide, write_data(WALKS), write_tokenizer(), out)
    prompt = HistoryPrompt.load(out)
    assert prompt.max_history == 2
    row = load_rows(out, "valid")[0]
    history = WALKS[0][:3]
    rendered = prompt.render([sid_of(i) for i in history], [TITLES[i] for i in history])
    assert rendered.text == row["prompt"]
    assert [list(span) for span in rendered.spans] == row["prompt_spans"]
    assert "untitled" in rendered.text


@pytest.mark.parametrize(
    ("data_says", "recipe_says", "used"), [(None, None, 20), (2, None, 2), (2, 1, 1)]
)
def test_max_history_is_inherited(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    data_says: int | None,
    recipe_says: int | None,
    used: int,
) -> None:
    out = tmp_path / "out"
    mine = adapt(recipe, max_history=recipe_says)
    make_instructions(mine, write_data(WALKS, max_history=data_says), write_tokenizer(), out)
    assert load_artifact(out).manifest.facts["max_history"] == used
    assert HistoryPrompt.load(out).max_history == used
    longest = max(row["prompt"].count("<a_") for row in load_rows(out, "valid"))
    assert longest == min(used, 3)


def test_last_only_repeats_shares_and_caps(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data = write_data([[0, 1, 2, 3, 4, 0, 1]] * 30)
    tokenizer = write_tokenizer()

    def count(**values: object) -> list[dict[str, object]]:
        out = tmp_path / "out"
        make_instructions(adapt(recipe, **values), data, tokenizer, out)
        return load_rows(out)

    only = {"sequential": 1}
    assert len(count(tasks=only)) == 30 * 4
    last = count(tasks=only, targets="last")
    assert {row["item_index"] for row in last} == {4} and len(last) == 30
    assert len(count(tasks=only, min_history=4)) == 30
    assert len(count(tasks=only, min_history=4, targets="last")) == 30
    assert 30 < len(count(tasks={"sequential": 0.5})) < 90
    twice = count(tasks={"sequential": 2}, targets="last")
    assert len(twice) == 60
    for user in range(30):  # a repeat comes in another wording
        assert len({row["template"] for row in twice if row["user_index"] == user}) == 2
    assert len(count(max_rows=7)) == 7
    unseen = {"sequential-what-comes-after", "item-to-sid-brand-kind", "sid-to-item-kind"}
    assert unseen.isdisjoint(row["template"] for row in count())


def test_valid_rows_are_capped_in_order(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    out = tmp_path / "out"
    capped = adapt(recipe, max_valid_rows=4)
    make_instructions(capped, write_data([[0, 1, 2, 3]] * 9), write_tokenizer(), out)
    users = [row["user_index"] for row in load_rows(out, "valid")]
    assert len(users) == 4 and users == sorted(users)


def test_templates_without_their_fields_are_off(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    artifact = make_instructions(recipe, write_data(WALKS, titles=()), write_tokenizer(), out)
    assert artifact.manifest.facts["tasks"]["train"] == {"item-to-sid": 5, "sequential": 3}
    assert set(artifact.manifest.facts["templates"]) & {"item-to-sid-text"}
    assert "template 'sid-to-item-title' is off: no row has all its fields" in caplog.text
    assert "task 'sid-to-item' writes no rows: every wording of it is off" in caplog.text


def test_a_task_without_subjects_is_warned_of_once(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = adapt(recipe, min_history=50, passes=2)
    make_instructions(long, write_data(WALKS), write_tokenizer(), tmp_path / "out")
    said = "task 'sequential' writes no rows: no subject is left (min_history: 50)"
    assert caplog.text.count(said) == 1


def test_nobody_to_validate_on(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    out = tmp_path / "out"
    make_instructions(recipe, write_data([[0]]), write_tokenizer(), out)
    assert load_rows(out, "valid") == []
    assert len(load_rows(out)) == 9


def test_what_is_logged_and_kept(
    tmp_path: Path,
    recipe: PromptsRecipe,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    shown = is_progress_bar_enabled()
    with caplog.at_level(logging.INFO):
        make_instructions(recipe, write_data(WALKS), write_tokenizer(), out)
    assert is_progress_bar_enabled() == shown
    assert "train: 12 rows" in caplog.text
    assert "item-to-sid 5, sequential 3, sid-to-item 4" in caplog.text
    assert "max_history: 20, the default" in caplog.text
    assert caplog.text.count("for example: ") == 3
    examples = json.loads((out / "examples.json").read_text())
    assert {task: len(rows) for task, rows in examples.items()} == {
        "item-to-sid": 3,
        "sequential": 3,
        "sid-to-item": 3,
    }


def test_a_tokenizer_of_another_catalogue(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data = write_data(WALKS)
    other = write_tokenizer(item_ids=["i0", "i1", "i2", "x7", "x8", "x8"])
    with pytest.raises(ArtifactError) as caught:
        make_instructions(recipe, data, other, tmp_path / "out")
    message = str(caught.value)
    assert "belongs to another catalogue" in message and "3 problems" in message
    assert "2 items without semantic ids: 'i3', 'i4'" in message
    assert "2 semantic ids of unknown items: 'x7', 'x8'" in message
    assert "1 item ids occur more than once" in message
    assert not (tmp_path / "out").exists()


def test_many_missing_items_are_named_in_part(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    with pytest.raises(
        ArtifactError, match=r"7 items without.*'i5', 'i6', 'i7', 'i8', 'i9', \.\.\."
    ):
        make_instructions(recipe, write_data(WALKS, 12), write_tokenizer(), tmp_path / "out")


def test_semantic_ids_that_are_shared_or_none(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data = write_data(WALKS)
    shared = write_tokenizer(sids=["<a_1>", "<a_1>", "<a_2>", "<a_3>", "<a_4>"])
    with pytest.raises(ArtifactError, match="1 items share their semantic ids"):
        make_instructions(recipe, data, shared, tmp_path / "out")
    forged = write_tokenizer(sids=["<a_1>", "<|im_start|>", "<a_2>", "<a_3>", "<a_4>"])
    with pytest.raises(ArtifactError, match=r"<.im_start.>' is not a semantic id.*genrec tokenize"):
        make_instructions(recipe, data, forged, tmp_path / "out")


def test_a_tokenizer_artefact_without_codes(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data = write_data(WALKS)
    with write_artifact(tmp_path / "bare", step="tokenize", recipe=recipe):
        pass
    with pytest.raises(ArtifactError, match=r"codes.parquet does not hold the columns item_id"):
        make_instructions(recipe, data, tmp_path / "bare", tmp_path / "out")
    with write_artifact(tmp_path / "odd", step="tokenize", recipe=recipe) as work:
        pl.DataFrame({"a": [1]}).write_parquet(work.path / "codes.parquet")
    with pytest.raises(ArtifactError, match=r"codes.parquet does not hold the columns item_id"):
        make_instructions(recipe, data, tmp_path / "odd", tmp_path / "out")
    with pytest.raises(ArtifactError, match="genrec tokenize"):
        make_instructions(recipe, data, data, tmp_path / "out")


def test_no_rows(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    alone = adapt(recipe, tasks={"sequential": 1})
    with pytest.raises(DataError, match=r"no training row.*more than 1 training items"):
        make_instructions(alone, write_data([[0, 1, 2]]), write_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_writes_nothing(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    wrong = adapt(recipe, tasks={"item-to-sids": 1})
    with pytest.raises(RecipeError, match="did you mean 'item-to-sid'"):
        make_instructions(wrong, write_data(WALKS), write_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_without_fields(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "kind: templates\nabout: x\ntemplates:\n"
        "- {id: any, task: item-to-sid, source: x, fields: [sid], input: Any item, "
        "target: '{{ sid }}'}\n"
    )
    mine = adapt(recipe, templates=(recipe.templates[0], str(file)), tasks={"item-to-sid": 1})
    make_instructions(mine, write_data(WALKS), write_tokenizer(), tmp_path / "out")
    rows = load_rows(tmp_path / "out")
    assert {row["prompt"] for row in rows} == {"Any item"}
    assert {row["target"] for row in rows} == {sid_of(item) for item in range(5)}

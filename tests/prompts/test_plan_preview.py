"""The preview of a recipe agrees with what is then written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from genrec.errors import ModelError
from genrec.prompts.preview import preview_rows
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions

from .conftest import WriteData, WriteTokenizer
from .test_step import WALKS, adapt, load_rows


def test_the_preview_is_what_is_written(
    tmp_path: Path, recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    data, tokenizer = write_data(WALKS), write_tokenizer()
    twice = adapt(recipe, passes=2)
    found = preview_rows(twice, data, tokenizer)
    assert not (tmp_path / "out").exists()
    artifact = make_instructions(twice, data, tokenizer, tmp_path / "out")
    rows, facts = load_rows(tmp_path / "out"), artifact.manifest.facts
    assert found["rows"] == len(rows) == 24 and found["rows_by_pass"] == [12, 12]
    assert found["valid_rows"] == facts["rows"]["valid"]
    assert {name: task["rows"] for name, task in found["tasks"].items()} == facts["tasks"]["train"]
    written = {row["template"]: row["rows"] for row in found["templates"] if row["rows"]}
    assert written == facts["templates"]
    assert {name: one["rows"] for name, one in found["families"].items()} == {
        "sequential": 6, "items": 18,
    }  # fmt: skip
    characters = sum(len(row["prompt"]) + len(row["target"]) for row in rows)
    assert abs(found["totals"]["characters"] - characters) <= len(found["templates"])
    sid_tokens = sum((row["prompt"] + row["target"]).count("<a_") for row in rows
                     if row["task"] == "sequential") * 3  # fmt: skip
    assert found["tasks"]["sequential"]["sid_tokens"] == pytest.approx(sid_tokens, abs=1)
    assert found["totals"]["tokens"] is None
    for family, examples in found["examples"].items():
        assert len(examples) == 3, family
        for example in examples:
            assert any(example["prompt"] == row["prompt"] for row in rows)
    longest = [row["characters"] for row in found["longest"]]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] == max(len(row["prompt"]) + len(row["target"]) for row in rows)
    json.dumps(found)


def test_why_templates_are_off(
    recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    bare = preview_rows(recipe, write_data(WALKS, titles=()), write_tokenizer())
    off = {row["template"]: row["off"] for row in bare["templates"] if not row["rows"]}
    assert off["sid-to-item-title"] == off["item-to-sid-title"] == "no value for title"
    assert off["sequential-what-comes-after"] == "unseen: kept back for tests"
    users = preview_rows(
        adapt(recipe, templates=("sequential", "items", "openp5")),
        write_data(WALKS, name="users"),
        write_tokenizer(),
    )
    off_users = {row["template"]: row["off"] for row in users["templates"]}
    assert off_users["openp5-next-known-user"] == "no value for user_sid; give --users"
    only = preview_rows(
        adapt(recipe, tasks={"sequential": 1}), write_data([[0]], name="x"), write_tokenizer()
    )
    off = {row["template"]: row["off"] for row in only["templates"]}
    assert off["item-to-sid-title"] == "the recipe writes no item-to-sid rows"
    assert off["sequential-predict"] == "the data has nothing for sequential rows"
    assert only["rows"] == 0 and only["examples"] == {} and only["longest"] == []
    few = preview_rows(adapt(recipe, max_rows=1), write_data(WALKS, name="few"), write_tokenizer())
    reasons = {row["off"] for row in few["templates"]}
    assert "no row has all its fields, or none was drawn" in reasons


def test_one_wording_that_writes_most(
    recipe: PromptsRecipe, write_data: WriteData, write_tokenizer: WriteTokenizer
) -> None:
    # Of a hundred items one has a title: only the text is always there.
    titles = ["", *[""] * 98, "A title"]
    items = adapt(recipe, tasks={"item-to-sid": 1})
    found = preview_rows(items, write_data(WALKS, 100, titles=titles), write_tokenizer(100))
    assert found["dominating"] == {"item-to-sid-text": pytest.approx(1.0, abs=0.02)}


def test_tokens_of_a_language_model(
    tmp_path: Path,
    recipe: PromptsRecipe,
    tokenizer: PreTrainedTokenizerFast,
    write_data: WriteData,
    write_tokenizer: WriteTokenizer,
) -> None:
    tokenizer.save_pretrained(tmp_path / "lm")
    data, made = write_data(WALKS), write_tokenizer()
    only = adapt(recipe, tasks={"sequential": 1}, only=("sequential-continue-codes",),
                 recommend_template="sequential-chosen-so-far")  # fmt: skip
    found = preview_rows(only, data, made, base=str(tmp_path / "lm"))
    make_instructions(only, data, made, tmp_path / "out")
    ids = [
        len(tokenizer.encode(row["prompt"], add_special_tokens=False))
        + len(tokenizer.encode(row["target"], add_special_tokens=False)) + 2
        for row in load_rows(tmp_path / "out")
    ]  # fmt: skip
    assert found["totals"]["tokens"] == sum(ids)
    assert found["longest"][0]["tokens"] == max(ids)
    with pytest.raises(ModelError, match=r"no tokenizer can be loaded from '.*nowhere'.*--lm"):
        preview_rows(only, data, made, base=str(tmp_path / "nowhere"))

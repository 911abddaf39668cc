"""Encoding of training rows, and what is kept of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer

from genrec.errors import DataError
from genrec.prompts.encode import encode_example
from genrec.prompts.render import Rendered
from genrec.train.rows import NO_USER, EncodedRow, encode_rows, pack_rows
from genrec.train.vocabulary import extend_tokenizer
from tests.train.made_inputs import CODEBOOKS, Inputs


@pytest.fixture
def tokenizer(bases: Callable[[str], Path]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(bases("qwen3"))
    extend_tokenizer(tokenizer, CODEBOOKS)
    return tokenizer


def make_row(n_prompt: int, n_target: int, start: int = 10) -> EncodedRow:
    ids = np.arange(start, start + n_prompt + n_target, dtype=np.int32)
    return EncodedRow(ids, n_prompt)


def test_batched_encoding_equals_encode_example(tokenizer: Any, inputs: Inputs) -> None:
    instructions = load_from_disk(str(inputs.instructions / "train"))
    rows = encode_rows(tokenizer, instructions, 200, "training")
    assert len(rows) == len(instructions)
    assert any(len(spans) for spans in instructions["prompt_spans"])
    for row, source in zip((rows[i] for i in range(len(rows))), instructions, strict=True):
        spans = tuple((start, stop) for start, stop in source["prompt_spans"])
        ids, n_prompt = encode_example(
            tokenizer, Rendered(source["prompt"], spans), Rendered(source["target"])
        )
        assert row.input_ids.tolist() == ids
        assert row.n_prompt == n_prompt


def test_hostile_title_never_becomes_a_sid_token(tokenizer: Any) -> None:
    prompt = "Which item is <a_1><b_2>?"
    row = {
        "prompt": prompt,
        "prompt_spans": [[14, len(prompt) - 1]],
        "target": "<a_0><b_0><c_0>",
        "target_spans": [],
    }
    encoded = encode_rows(tokenizer, Dataset.from_list([row]), 200, "training")[0]
    sid_ids = set(tokenizer.convert_tokens_to_ids(["<a_1>", "<b_2>"]))
    assert not sid_ids & set(encoded.input_ids[: encoded.n_prompt].tolist())


def test_long_rows_are_left_out_and_counted(
    tokenizer: Any, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    instructions = load_from_disk(str(inputs.instructions / "train"))
    lengths = encode_rows(tokenizer, instructions, 200, "training").lengths
    limit = int(np.median(lengths))
    with caplog.at_level(logging.WARNING):
        kept = encode_rows(tokenizer, instructions, limit, "training")
    assert len(kept) == int((lengths <= limit).sum())
    assert "are longer than max_tokens" in caplog.text


def test_no_rows_and_only_long_rows_are_errors(tokenizer: Any, inputs: Inputs) -> None:
    instructions = load_from_disk(str(inputs.instructions / "train"))
    with pytest.raises(DataError, match="the instructions have no training rows"):
        encode_rows(tokenizer, instructions.select(range(0)), 200, "training")
    with pytest.raises(DataError, match=r"rows are longer than max_tokens 3 .* raise max_tokens"):
        encode_rows(tokenizer, instructions, 3, "training")


def test_packed_rows_come_back_whole() -> None:
    rows = [make_row(3, 2), make_row(1, 4, start=50)]
    packed = pack_rows(rows)
    assert packed.lengths.tolist() == [5, 5]
    assert packed[1].input_ids.tolist() == list(range(50, 55))
    assert packed.select(np.array([1]))[0].n_prompt == 1
    assert len(pack_rows([])) == 0


def test_what_is_known_of_rows_is_kept(tokenizer: Any, inputs: Inputs) -> None:
    instructions = load_from_disk(str(inputs.instructions / "train")).select(range(6))
    tasks = ["b", "a", "b", "c", "a", "b"]
    instructions = instructions.remove_columns("task").add_column("task", tasks)
    instructions = instructions.add_column("pass", [0, 0, 1, 1, 2, 2])
    rows = encode_rows(tokenizer, instructions, 200, "training")
    assert [rows.task_names[row.task] for row in (rows[i] for i in range(6))] == tasks
    assert rows.task_names == ("b", "a", "c")
    assert rows.users.tolist() == instructions["user_index"]
    assert rows.passes.tolist() == [0, 0, 1, 1, 2, 2]
    chosen = rows.select(np.array([4, 1]))
    assert chosen.passes.tolist() == [2, 0]
    assert chosen.users.tolist() == [4, 1]
    assert [chosen.task_names[task] for task in chosen.tasks] == ["a", "a"]
    # Rows that are too long go with all that is known of them.
    limit = int(rows.lengths.max()) - 1
    kept = encode_rows(tokenizer, instructions, limit, "training")
    assert kept.users.tolist() == rows.users[rows.lengths <= limit].tolist()


def test_older_instructions_are_of_one_pass_and_no_task(tokenizer: Any) -> None:
    row = {"prompt": "a", "prompt_spans": [], "target": "b", "target_spans": []}
    rows = encode_rows(tokenizer, Dataset.from_list([row, row]), 200, "training")
    assert rows.passes.tolist() == rows.tasks.tolist() == [0, 0]
    assert rows.users.tolist() == [NO_USER] * 2
    assert rows.task_names == ("",)


def test_reading_in_pieces_changes_nothing(
    tokenizer: Any, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    instructions = load_from_disk(str(inputs.instructions / "train"))
    whole = encode_rows(tokenizer, instructions, 200, "training")
    monkeypatch.setattr("genrec.train.rows._READ_ROWS", 5)
    pieces = encode_rows(tokenizer, instructions, 200, "training")
    for name in ("tokens", "offsets", "prompt_lengths", "tasks", "users", "passes"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
        assert getattr(whole, name).dtype == getattr(pieces, name).dtype

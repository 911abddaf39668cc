"""Encoding, grouping and padding of training rows."""

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
from genrec.train.rows import (
    IGNORED_LABEL,
    EncodedRow,
    LengthGroups,
    collate_rows,
    encode_rows,
    pack_rows,
)
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


def test_collated_targets_end_at_the_right_edge() -> None:
    batch = collate_rows([make_row(4, 2, 10), make_row(1, 3, 30)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15], [0, 0, 30, 31, 32, 33]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]
    assert batch["logits_to_keep"] == 4
    assert batch["labels"].tolist() == [
        [IGNORED_LABEL, IGNORED_LABEL, 14, 15],
        [IGNORED_LABEL, 31, 32, 33],
    ]


def test_collating_keeps_a_column_before_targets_that_fill_the_row() -> None:
    batch = collate_rows([make_row(0, 3)], pad_token_id=0)
    assert batch["labels"].shape == batch["input_ids"].shape == (1, 4)


def test_every_row_is_drawn_once_an_epoch_and_batches_have_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 1003)
    grouped = LengthGroups(lengths, 16, seed=1, group=True)
    order = np.array(list(grouped))
    assert len(grouped) == 1003
    assert sorted(order.tolist()) == list(range(1003))

    def padding(order: np.ndarray) -> int:
        batches = np.split(order[:992], 62)
        return sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in batches)

    plain = np.array(list(LengthGroups(lengths, 16, seed=1, group=False)))
    assert padding(order) < padding(plain) / 10


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.arange(100)
    sampler = LengthGroups(lengths, 4, seed=3, group=True)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthGroups(lengths, 4, seed=4, group=True)) != first

"""Training rows in whole blocks, and the model that is trained on them, asked as it was trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk
from pydantic import ValidationError
from transformers import AutoTokenizer

from genrec.artifact import load_artifact
from genrec.data.dataset import Dataset
from genrec.decode.align import Padding, find_padding
from genrec.errors import DataError, RecipeError
from genrec.recommender import Recommender
from genrec.train.align import list_first_tokens, pad_rows
from genrec.train.checkpoint import load_checkpoint
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRow, encode_rows, pack_rows
from genrec.train.splits import encode_splits
from genrec.train.step import make_model
from genrec.train.vocabulary import extend_tokenizer
from tests.train.made_inputs import CODEBOOKS, Inputs

FIRST = np.array([50, 51])
PADDING = Padding(8, 7)


@pytest.fixture
def tokenizer(bases: Callable[[str], Path]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(bases("qwen3"))
    extend_tokenizer(tokenizer, CODEBOOKS)
    return tokenizer


def make_row(prompt: list[int], answer: list[int], **facts: int) -> EncodedRow:
    return EncodedRow(np.array(prompt + answer, dtype=np.int32), len(prompt), **facts)


def test_rows_that_a_semantic_id_answers_are_filled_up_and_others_are_not() -> None:
    rows = pack_rows(
        [
            make_row([1] * 5, [50, 60, 2], task=1, user=4),
            make_row([1, 51, 51], [30, 2]),  # answered with text, whatever the prompt shows
            make_row([3] * 8, [51, 60, 2]),
            make_row([4] * 9, [51, 2]),
        ],
        passes=[0, 1, 2, 3],
        task_names=("text", "next"),
    )
    padded = pad_rows(rows, PADDING, FIRST, 100)
    assert [row.input_ids.tolist() for row in padded] == [
        [1] * 5 + [7] * 3 + [50, 60, 2],
        [1, 51, 51, 30, 2],
        [3] * 8 + [51, 60, 2],
        [4] * 9 + [7] * 7 + [51, 2],
    ]
    assert [padded[row].n_prompt for row in range(4)] == [8, 3, 8, 16]
    assert (padded[0].task, padded[0].user) == (1, 4)
    assert padded.passes.tolist() == [0, 1, 2, 3] and padded.task_names == ("text", "next")


def test_rows_that_get_too_long_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = pack_rows([make_row([1] * 5, [50, 2]), make_row([4] * 9, [51, 2])])
    with caplog.at_level(logging.INFO):
        padded = pad_rows(rows, PADDING, FIRST, 12)
    assert len(padded) == 1 and padded[0].n_prompt == 8
    assert "1 of 2 rows are longer than max_tokens 12" in caplog.text
    assert "align 8 adds 56% to the tokens" in caplog.text
    with pytest.raises(DataError, match=r"all 2 rows are longer than max_tokens 9 once .* of 8"):
        pad_rows(rows, PADDING, FIRST, 9)


def test_a_model_without_semantic_ids_has_nothing_to_align(bases: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases("qwen3"))
    with pytest.raises(RecipeError, match="this model has none; use align: 0"):
        list_first_tokens(tokenizer)


def test_the_first_tokens_are_the_first_level(tokenizer: Any) -> None:
    names = [f"<a_{code}>" for code in range(CODEBOOKS[0])]
    assert list_first_tokens(tokenizer).tolist() == tokenizer.convert_tokens_to_ids(names)


def test_both_splits_are_aligned(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    checkpoint = load_checkpoint(bases("qwen3"), None)
    extend_tokenizer(checkpoint.tokenizer, CODEBOOKS)
    aligned = recipe.model_copy(update={"align": 16})
    plain = encode_splits(recipe, checkpoint, inputs.instructions)
    for before, after in zip(
        plain, encode_splits(aligned, checkpoint, inputs.instructions), strict=True
    ):
        assert before is not None and after is not None and len(before) == len(after)
        answers = after.tokens[after.offsets[:-1] + after.prompt_lengths]
        items = np.isin(answers, list_first_tokens(checkpoint.tokenizer))
        assert items.any()
        assert (after.prompt_lengths[items] % 16 == 0).all()
        assert after.prompt_lengths.sum() > before.prompt_lengths.sum()


def test_a_model_is_asked_as_it_was_trained(
    tiny_run: Path, recipe: TrainRecipe, tmp_path: Path
) -> None:
    """By every engine: what vLLM gets in whole blocks, the embedded engine gets as well."""
    short = recipe.model_copy(update={"max_steps": 1, "eval_every": 0.0, "align": 16})
    out = tmp_path / "model"
    instructions, sids = tiny_run / "instructions", tiny_run / "tokenizer"
    make_model(short, tiny_run / "base", instructions, sids, tiny_run / "data", out)
    settings = json.loads((out / "genrec.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    padding = find_padding(16, tokenizer)
    assert padding is not None and settings["align"] == padding.as_record()
    recommender = Recommender.from_pretrained(out, device="cpu")
    histories = [np.arange(length) for length in (1, 3, 6)]
    prompts = recommender.encode_prompts(histories, [""] * 3)
    assert {len(prompt) % 16 for prompt in prompts} == {0}
    # The very tokens that the model was trained on.
    rows = encode_rows(tokenizer, load_from_disk(str(instructions / "train")), 128, "training")
    padded = pad_rows(rows, padding, list_first_tokens(tokenizer), 128)
    trained = {tuple(padded[row].input_ids[: padded[row].n_prompt]) for row in range(len(padded))}
    users = Dataset(load_artifact(tiny_run / "data")).holdout("valid").histories
    asked = recommender.encode_prompts([users[0][:-1], users[1][:-1]], [""] * 2)
    assert any(tuple(prompt) in trained for prompt in asked)
    assert len(recommender.recommend(recommender.item_ids[:2], k=3)) == 3
    engineless = Recommender.from_pretrained(
        out, engine="items", vllm_args={"block_size": 16}, align="drop"
    )
    assert engineless.encode_prompts(histories, [""] * 3) == prompts
    assert engineless.engine.block_tokens == 16  # type: ignore[attr-defined]


def test_a_model_without_padding_keeps_its_prompts_and_may_drop(tiny_run: Path) -> None:
    plain = Recommender.from_pretrained(tiny_run / "model", device="cpu")
    assert plain.aligner.padding is None
    drops = Recommender.from_pretrained(
        tiny_run / "model", engine="items", vllm_args={"block_size": 16}, align="drop"
    )
    histories = [np.arange(length) for length in range(1, 21)]
    kept = plain.encode_prompts(histories, [""] * 20)
    cut = drops.encode_prompts(histories, [""] * 20)
    tails = [(len(a) % 16, len(b) % 16) for a, b in zip(kept, cut, strict=True) if a != b]
    assert tails and all(after < before for before, after in tails)
    assert all(len(a) // 16 == len(b) // 16 for a, b in zip(kept, cut, strict=True))
    assert drops.replace_items(drops.engine.trie, drops.catalogue.index).aligner == drops.aligner  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="a TorchEngine keeps none in blocks"):
        Recommender.from_pretrained(tiny_run / "model", device="cpu", align="drop")


def test_soft_users_and_alignment_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match=r"align 32 .* runs no soft_user_tokens .4."):
        TrainRecipe(align=32, soft_user_tokens=4)

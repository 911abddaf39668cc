"""Fixtures of the training tests; no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.train.checkpoint import quiet_transformers
from genrec.train.corpus import train_tokenizer
from genrec.train.recipe import TrainRecipe
from tests.train.made_inputs import (
    PROMPT,
    Inputs,
    build_tiny,
    item_text,
    write_data,
    write_instructions,
    write_tokenizer,
)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("train-inputs")
    data = write_data(folder / "data")
    tokenizer = write_tokenizer(folder / "tokenizer", data)
    instructions = write_instructions(folder / "instructions", data, tokenizer)
    return Inputs(data.path, tokenizer.path, instructions.path)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of tiny random checkpoints, by kind: qwen3 (tied), llama (untied), gpt2."""
    folder = tmp_path_factory.mktemp("bases")

    def find(kind: str) -> Path:
        path = folder / kind
        if not path.exists():
            tokenizer = train_tokenizer([item_text(item) for item in range(40)], (PROMPT,), 320)
            with quiet_transformers():
                build_tiny(kind, tokenizer).save_pretrained(path)
                tokenizer.save_pretrained(path)
        return path

    return find


@pytest.fixture
def recipe() -> TrainRecipe:
    """A run of twelve updates on CPU, without dropout."""
    return TrainRecipe(
        rank=4,
        alpha=8,
        dropout=0.0,
        learning_rate=1e-2,
        batch_size=8,
        epochs=2,
        eval_every=4,
        patience=0,
        log_every=2,
        max_tokens=128,
        precision="fp32",
    )

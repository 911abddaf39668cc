"""Runs of training on the tiny inputs, ready to start."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk

from genrec.train.adapter import prepare_model
from genrec.train.checkpoint import choose_dtype, load_checkpoint
from genrec.train.quantized import quantize_base
from genrec.train.recipe import TrainRecipe
from genrec.train.rows import EncodedRows, encode_rows
from genrec.train.vocabulary import extend_vocabulary
from tests.train.made_inputs import CODEBOOKS, Inputs, item_codes, item_text


@dataclass
class Run:
    """A model ready to train, and what it trains on."""

    model: Any
    rows: EncodedRows
    valid_rows: EncodedRows
    pad_token_id: int
    new_ids: list[int]


def begin(recipe: TrainRecipe, base: Path, inputs: Inputs) -> Run:
    words = quantize_base(choose_dtype("fp32")) if recipe.method == "qlora" else None
    checkpoint = load_checkpoint(base, torch.float32, words)
    extension = extend_vocabulary(
        checkpoint.model,
        checkpoint.tokenizer,
        CODEBOOKS,
        [item_text(item) for item in range(40)],
        item_codes(40),
        noise=0.1,
        seed=0,
    )
    splits = [
        encode_rows(
            checkpoint.tokenizer, load_from_disk(str(inputs.instructions / name)), 200, name
        )
        for name in ("train", "valid")
    ]
    model = prepare_model(checkpoint.model, recipe, extension.flat_ids())
    return Run(model, *splits, checkpoint.tokenizer.pad_token_id, extension.flat_ids())


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


SCRIPT = Path(__file__).with_name("launched_run.py")


def command(recipe: TrainRecipe, base: Path, inputs: Inputs, out: Path) -> list[str]:
    """The arguments of a process that trains, after Python's or a launcher's own."""
    folders = (base, inputs.instructions, inputs.tokenizer, inputs.data, out)
    return [str(SCRIPT), recipe.model_dump_json(), *map(str, folders)]


def environment(**more: str) -> dict[str, str]:
    plain = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    return os.environ | plain | more


def launch(config: Path, arguments: list[str]) -> None:
    """Run under `accelerate launch`, with what went wrong in the failure's message."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    done = subprocess.run(
        [*launcher, "--main_process_port=0", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]

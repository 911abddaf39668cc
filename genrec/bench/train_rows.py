"""Rows to train on as `genrec prompts` writes them: several tasks, with the lengths of real text.

Owns the way from raw data to token ids, and cutting them into batches. Knows no model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from datasets import load_from_disk

from genrec.bench.made_vectors import REAL_SET
from genrec.bench.train_options import TrainBench
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.recipe import read_recipe
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import make_tokenizer
from genrec.train.corpus import train_tokenizer
from genrec.train.rows import EncodedRow, EncodedRows, encode_rows
from genrec.train.vocabulary import extend_tokenizer

CODEBOOKS = (256, 256, 256, 256)
TEXT_VOCABULARY = 32_000
MAX_TOKENS = 1024
_ROWS, _QUICK_ROWS = 20_000, 400


@dataclass(frozen=True, slots=True)
class BenchRows:
    """Rows and what they are called.

    Attributes:
        name: the data set's.
        rows: token ids below `vocabulary`.
        sid_tokens: the token ids of all semantic-ID tokens.
        vocabulary: V of the model; where text makes fewer tokens than the model has rows for, as
            with published checkpoints, the rest is spare.
    """

    name: str
    rows: EncodedRows
    sid_tokens: list[int]
    vocabulary: int


def make_rows(options: TrainBench) -> BenchRows:
    """Rows of the shipped prompts recipe `standard`, over Beauty or else the synthetic set.

    The semantic IDs are random: their number of tokens is what matters here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        name, recipe = _choose_data(options)
        make_data(recipe, folder / "data")
        codes = TokenizeRecipe(quantizer="random", codebook_sizes=CODEBOOKS)
        make_tokenizer(codes, None, folder / "tokenizer", data=folder / "data")
        most = _QUICK_ROWS if options.quick else _ROWS
        prompts = read_recipe(PromptsRecipe, "standard", [f"max_rows={most}"], kind="prompts")
        make_instructions(prompts, folder / "data", folder / "tokenizer", folder / "instructions")
        items = pl.read_parquet(folder / "data" / "items.parquet", columns=["text"])
        texts = [text for text in items["text"].to_list() if text]
        instructions = load_from_disk(str(folder / "instructions" / "train"))
        tokenizer = train_tokenizer(
            texts, sorted(set(instructions["prompt"][:200])), TEXT_VOCABULARY
        )
        extend_tokenizer(tokenizer, CODEBOOKS)
        rows = encode_rows(tokenizer, instructions, MAX_TOKENS, "training")
    n_tokens, n_codes = len(tokenizer), sum(CODEBOOKS)
    sid_tokens = list(range(n_tokens - n_codes, n_tokens))
    vocabulary = n_tokens if options.quick else TEXT_VOCABULARY + n_codes
    return BenchRows(name, rows, sid_tokens, vocabulary)


def _choose_data(options: TrainBench) -> tuple[str, DataRecipe]:
    path = None if options.data is None else options.data / REAL_SET
    if path is not None and (path / "interactions.parquet").is_file() and not options.quick:
        fields = ("title", "brand", "categories")
        return REAL_SET, DataRecipe(source="table", path=str(path), text_fields=fields)
    sizes = {"n_items": 60, "n_users": 60} if options.quick else {"n_items": 5000, "n_users": 4000}
    return "synthetic", DataRecipe.model_validate({"source": "synthetic", **sizes})


def draw_batches(
    rows: EncodedRows, n_batches: int, batch_size: int, seed: int = 0
) -> list[Sequence[EncodedRow]]:
    """Batches of shuffled rows, none of them twice."""
    order = np.random.default_rng(seed).permutation(len(rows))[: n_batches * batch_size]
    return [
        [rows[int(row)] for row in order[start : start + batch_size]]
        for start in range(0, len(order), batch_size)
    ]

"""Tiny artefacts and models for the tests of training, made on the spot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from genrec.artifact import Artifact, write_artifact
from genrec.recipe import Recipe
from genrec.tokenizers.sid_text import format_sid
from genrec.train.base import build_model
from genrec.train.recipe import BaseRecipe

WORDS = ["red", "blue", "green", "shoe", "hat", "lamp", "chair", "large", "small", "wooden"]
CODEBOOKS = (5, 4, 6)
PROMPT = "The user chose: {history}. Next:"


@dataclass(frozen=True)
class Inputs:
    """The three artefacts that training reads."""

    data: Path
    tokenizer: Path
    instructions: Path


def item_text(item: int) -> str:
    first, second, third = item % 10, (item * 3 + 1) % 10, (item * 7 + 2) % 10
    return f"{WORDS[first]} {WORDS[second]} {WORDS[third]}"


def item_codes(n_items: int) -> np.ndarray:
    indices = np.arange(n_items)
    codes = [indices // 24 % 5, indices // 6 % 4, indices % 6]
    return np.stack(codes, axis=1).astype(np.int32)


def write_data(out: Path, n_items: int = 40, *, text: bool = True) -> Artifact:
    texts = [item_text(item) if text else "" for item in range(n_items)]
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        pl.DataFrame(
            {
                "item_index": np.arange(n_items),
                "item_id": [f"i{item}" for item in range(n_items)],
                "title": texts,
                "text": texts,
            }
        ).write_parquet(work.path / "items.parquet")
    return work.artifact


def write_tokenizer(out: Path, data: Artifact, n_items: int = 40, seed: int = 0) -> Artifact:
    codes = item_codes(n_items)
    recipe = Recipe(seed=seed)
    with write_artifact(out, step="tokenize", recipe=recipe, inputs={"embed": data}) as work:
        config = {"n_levels": len(CODEBOOKS), "codebook_sizes": list(CODEBOOKS)}
        (work.path / "config.json").write_text(json.dumps(config))
        pl.DataFrame(
            {
                "item_id": [f"i{item}" for item in range(n_items)],
                "codes": codes.tolist(),
                "sid": [format_sid(row) for row in codes.tolist()],
            },
            schema_overrides={"codes": pl.List(pl.Int32)},
        ).sample(fraction=1.0, shuffle=True, seed=1).write_parquet(work.path / "codes.parquet")
    return work.artifact


def make_rows(n_rows: int, n_items: int, seed: int) -> list[dict[str, Any]]:
    """Memorisable rows: the next item follows from the last one; some carry text from data."""
    random = np.random.default_rng(seed)
    sids = [format_sid(row) for row in item_codes(n_items).tolist()]
    rows = []
    for number in range(n_rows):
        history = random.integers(0, n_items, random.integers(1, 5))
        target = int(history[-1] * 7 + 3) % n_items
        prompt = PROMPT.format(history=", ".join(sids[item] for item in history))
        answer, spans = sids[target], []
        if number % 5 == 4:
            title = item_text(target)
            prompt, spans = f"Which item is {title}?", [[14, 14 + len(title)]]
        rows.append(
            {
                "prompt": prompt,
                "prompt_spans": spans,
                "target": answer,
                "target_spans": [],
                "task": "sequential",
                "template": "t1",
                "user_index": number,
                "item_index": target,
            }
        )
    return rows


def write_instructions(
    out: Path,
    data: Artifact,
    tokenizer: Artifact,
    n_rows: int = 48,
    n_items: int = 40,
    *,
    n_passes: int = 1,
) -> Artifact:
    inputs = {"data": data, "tokenize": tokenizer}
    with write_artifact(out, step="prompts", recipe=Recipe(), inputs=inputs) as work:
        rows = make_rows(max(n_rows, 1), n_items, 0)
        if n_passes > 1:
            rows = [row | {"pass": number % n_passes} for number, row in enumerate(rows)]
        Dataset.from_list(rows).select(range(n_rows)).save_to_disk(str(work.path / "train"))
        valid = make_rows(12, n_items, 1)
        Dataset.from_list(valid).save_to_disk(str(work.path / "valid"))
        (work.path / "recommend.json").write_text('{"template": "t1"}')
    return work.artifact


TINY_BASE = BaseRecipe(
    vocab_size=320,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    feed_forward_size=48,
    max_positions=256,
    extra_text=(PROMPT, "Which item is it?"),
    block_tokens=32,
    batch_size=8,
    epochs=2,
)


def build_tiny(kind: str, tokenizer: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    size = len(tokenizer)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "qwen3":
        return build_model(TINY_BASE, tokenizer)
    if kind == "llama":
        # Spare rows beyond the tokenizer, as many published checkpoints have; the head is untied.
        config = LlamaConfig(
            vocab_size=size + 4,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=False,
            **ends,
        )
        return LlamaForCausalLM(config)
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ends)
    return GPT2LMHeadModel(config)

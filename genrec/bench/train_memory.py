"""Peak memory of training the new token rows against whole embedding matrices.

Owns the measurement and its rows. Each way runs in a fresh process: weights, gradients, the states
of Adam and what a step holds between, above what the process had before the model.

Source: `modules_to_save` of embedding and head is how LC-Rec and most LoRA recipes train added
tokens; PEFT then copies both matrices and trains the copies.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from genrec.bench.rows import BenchRow, build_row
from genrec.bench.train_model import SMALL, TINY
from genrec.bench.train_options import TrainBench
from genrec.manifest import read_json, write_json
from genrec.memory import read_peak, reset_peak

VOCABULARY, NEW_TOKENS = 150_000, 1024
_QUICK_VOCABULARY, _QUICK_TOKENS = 2000, 16
_ROWS, _TOKENS, _TARGETS, _STEPS = 8, 64, 5, 3
WAYS = {"rows": "trainable_token_indices", "matrices": "modules_to_save of both matrices"}


def bench_memory(options: TrainBench) -> list[BenchRow]:
    """Peak bytes of either way, untied embedding and head, and their ratio."""
    vocabulary = _QUICK_VOCABULARY if options.quick else VOCABULARY
    hidden = (TINY if options.quick else SMALL)["hidden_size"]
    where = f"V {vocabulary:,}, hidden {hidden}, untied, float32"
    peaks = {way: _measure_apart(way, options.quick) for way in WAYS}
    return [
        *(
            build_row(f"{where}: {WAYS[way]}", peak / 1e9, "GB at the peak")
            for way, peak in peaks.items()
        ),
        build_row(
            f"{where}: peak memory",
            peaks["matrices"] / peaks["rows"],
            "times less",
            against=WAYS["matrices"],
        ),
    ]


def _measure_apart(way: str, quick: bool) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "peak.json"
        code = (
            "from genrec.bench.train_memory import measure_peak; "
            f"measure_peak({way!r}, {quick}, {str(found)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        return int(read_json(found)["bytes"])


def measure_peak(way: str, quick: bool, out: str) -> None:
    """Take a few steps in this process, and write the highest memory above the start's to `out`."""
    reset_peak()
    before = read_peak()
    model = _build_model(way, quick)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, model.config.vocab_size, (_ROWS, _TOKENS))
    kept = torch.arange(_TOKENS - _TARGETS - 1, _TOKENS - 1)
    for _ in range(_STEPS):
        logits = model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, kept + 1].flatten()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    write_json(Path(out), {"bytes": read_peak() - before})


def _build_model(way: str, quick: bool) -> Any:
    vocabulary = _QUICK_VOCABULARY if quick else VOCABULARY
    n_new = _QUICK_TOKENS if quick else NEW_TOKENS
    new = list(range(vocabulary - n_new, vocabulary))
    matrices = ["embed_tokens", "lm_head"]
    config = Qwen3Config(
        **(TINY if quick else SMALL), vocab_size=vocabulary, tie_word_embeddings=False
    )
    build: Any = Qwen3ForCausalLM
    trained: dict[str, Any] = (
        {"trainable_token_indices": dict.fromkeys(matrices, new)}
        if way == "rows"
        else {"modules_to_save": matrices}
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear", **trained)
    return get_peft_model(build(config), lora).train()

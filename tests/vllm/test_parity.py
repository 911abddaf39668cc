"""What training exports, in a real vLLM on the CPU, against transformers.

`make test-vllm` makes the environment and runs these; without vLLM they are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.tokenizers.sid_text import format_sid, format_token
from genrec.train.base import build_model
from genrec.train.checkpoint import quiet_transformers
from genrec.train.corpus import train_tokenizer
from genrec.train.recipe import BaseRecipe, TrainRecipe
from genrec.train.step import make_model
from tests.train.made_domains import DOMAINS, write_domains
from tests.train.made_inputs import CODEBOOKS, PROMPT, item_codes, item_text

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make test-vllm)"
    ),
]
# In float32 two engines differ by the order of their sums: 1e-5 was seen, and 1 between adapters.
TOLERANCE = 1e-3
HISTORIES = ((1,), (20, 3), (5, 30, 39), (24, 25, 26, 2))
Logs = np.ndarray


@dataclass(frozen=True)
class Shelf:
    """A base with vocabulary and an adapter of it, a model of each domain, and others."""

    folder: Path
    prompts: list[list[int]]
    token_ids: list[int]

    def read_logs(self, model: Any) -> Logs:
        """What transformers says of the SID tokens after each prompt, (prompts, tokens)."""
        rows = []
        for ids in self.prompts:
            with torch.no_grad():
                logits = model.eval()(torch.tensor([ids])).logits[0, -1].float()
            rows.append(torch.log_softmax(logits, 0)[self.token_ids].numpy())
        return np.stack(rows)

    def open_merged(self, name: str) -> Logs:
        return self.read_logs(AutoModelForCausalLM.from_pretrained(self.folder / name))

    def ask_vllm(
        self,
        model: str,
        adapters: dict[str, str] | None = None,
        batches: Sequence[Sequence[str]] = ((),),
    ) -> list[Any]:
        """vLLM's answers to the same; of each batch of prompts that one engine gets."""
        job = {
            "model": str(self.folder / model),
            "adapters": {k: str(self.folder / v) for k, v in (adapters or {}).items()},
            "batches": batches,
            "prompts": self.prompts,
            "token_ids": self.token_ids,
        }
        job_file, answer_file = self.folder / "job.json", self.folder / "answers.json"
        job_file.write_text(json.dumps(job))
        answer_file.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, Path(__file__).with_name("ask_engine.py"), job_file, answer_file],
            check=True,
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
            | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"},
            timeout=600,
        )
        answers = json.loads(answer_file.read_text())
        return [a if isinstance(a, str) else np.array(a) for a in answers]


def write_base(out: Path, *, tied: bool) -> Path:
    """A Qwen3 of a shape that vLLM's CPU attention takes: heads of 32."""
    shape = BaseRecipe(
        vocab_size=320, hidden_size=128, layers=2, heads=4, kv_heads=2, feed_forward_size=192,
        max_positions=256, tied_embeddings=tied,
    )  # fmt: skip
    tokenizer = train_tokenizer([item_text(item) for item in range(40)], (PROMPT,), 320)
    torch.manual_seed(0)
    with quiet_transformers():
        build_model(shape, tokenizer).save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("vllm")
    inputs = write_domains(folder)
    recipe = TrainRecipe(
        rank=4, alpha=8, dropout=0.0, learning_rate=0.01, batch_size=16, max_steps=20,
        eval_every=0.0, export_base=True, precision="fp32",
    )  # fmt: skip

    def make(name: str, base: Path, **values: Any) -> Path:
        chosen = recipe.model_copy(update=values)
        make_model(chosen, base, inputs.instructions, inputs.tokenizer, inputs.data, folder / name)
        return folder / name

    tied = write_base(folder / "tied", tied=True)
    shared = make("shared", tied)
    make("untied-model", write_base(folder / "untied", tied=False), method="rslora")
    make("dora", tied, method="dora", export_base=False)
    for domain in DOMAINS:
        make(domain, shared, token_rows="frozen", domain=domain, export_base=False)
    tokenizer = AutoTokenizer.from_pretrained(shared)
    sids = [format_sid(row) for row in item_codes(40).tolist()]
    texts = [f"Chosen so far, oldest first: {' '.join(sids[i] for i in h)}" for h in HISTORIES]
    names = [
        format_token(level, code) for level, size in enumerate(CODEBOOKS) for code in range(size)
    ]
    return Shelf(
        folder,
        [tokenizer(text)["input_ids"] for text in texts],
        tokenizer.convert_tokens_to_ids(names),
    )


def assert_near(found: Any, wanted: Logs, name: str) -> None:
    assert not isinstance(found, str), found
    error = float(np.abs(found - wanted).max())
    print(f"{name}: largest difference {error:.1e}")
    assert error < TOLERANCE, name


@pytest.fixture(scope="module")
def served(shelf: Shelf) -> dict[str, Any]:
    """One engine over one base, asked for its own adapter, the domains', and what it refuses."""
    first, second = DOMAINS
    n_prompts, half = len(HISTORIES), len(HISTORIES) // 2
    batches = {name: [name] * n_prompts for name in ("own", *DOMAINS)}
    batches["own again"] = batches["own"]
    batches["both"] = [first] * half + [second] * half
    batches |= {name: [name] * n_prompts for name in ("rows", "dora")}
    adapters = {name: f"{name}/lora" for name in DOMAINS}
    adapters |= {"own": "shared/lora", "rows": "shared/adapter", "dora": "dora/adapter"}
    answers = shelf.ask_vllm("shared/base", adapters, list(batches.values()))
    return dict(zip(batches, answers, strict=True))


@pytest.mark.parametrize("model", ["shared", "untied-model"])
def test_the_merged_checkpoint_says_what_transformers_says(model: str, shelf: Shelf) -> None:
    (found,) = shelf.ask_vllm(model)
    assert_near(found, shelf.open_merged(model), model)


def test_base_and_lora_are_the_merged_checkpoint(shelf: Shelf, served: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(shelf.folder / "shared" / "base")
    parts = PeftModel.from_pretrained(base, shelf.folder / "shared" / "lora")
    for name in ("own", "own again"):
        assert_near(served[name], shelf.open_merged("shared"), f"{name}, merged")
        assert_near(served[name], shelf.read_logs(parts), f"{name}, PEFT")


def test_rank_stabilised_scaling_and_an_untied_head(shelf: Shelf) -> None:
    model = "untied-model"
    (found,) = shelf.ask_vllm(f"{model}/base", {"own": f"{model}/lora"}, [["own"] * len(HISTORIES)])
    assert_near(found, shelf.open_merged(model), f"{model}, base and lora")


def test_domain_adapters_side_by_side_are_their_merged_models(
    shelf: Shelf, served: dict[str, Any]
) -> None:
    """Each alone, and both in one batch."""
    first, second = (shelf.open_merged(name) for name in DOMAINS)
    half = len(HISTORIES) // 2
    assert_near(served[DOMAINS[0]], first, DOMAINS[0])
    assert_near(served[DOMAINS[1]], second, DOMAINS[1])
    assert_near(served["both"], np.concatenate([first[:half], second[half:]]), "both in a batch")
    assert np.abs(first - second).max() > 100 * TOLERANCE


def test_adapters_with_token_rows_and_dora_are_refused(served: dict[str, Any]) -> None:
    """Why `lora/` exists, and why DoRA has none: told here if a later vLLM takes them."""
    assert "unsupported LoRA weight" in served["rows"]
    assert "DoRA" in served["dora"]

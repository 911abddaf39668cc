"""A small model that both engines run, and vLLM over it in the test's own process."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from genrec.decode.trie import Trie
from genrec.train.corpus import train_tokenizer

VOCABULARY, N_LEVELS, CODES_A_LEVEL = 512, 3, 8
FIRST_TOKEN = VOCABULARY - N_LEVELS * CODES_A_LEVEL
TOKEN_IDS = [
    np.random.default_rng(level).permutation(CODES_A_LEVEL) + FIRST_TOKEN + level * CODES_A_LEVEL
    for level in range(N_LEVELS)
]
NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make test-vllm)"
    ),
    # vLLM's own: torch names that it still uses, and swig's.
    pytest.mark.filterwarnings("ignore"),
]
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def write_model(out: Path) -> Path:
    """A Qwen3 whose logits differ clearly, in heads of 32 that vLLM's CPU attention takes."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        initializer_range=0.15, eos_token_id=None, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(out)
    texts = [f"item {number} is {number * 7 % 31} of its kind" for number in range(100)]
    train_tokenizer(texts, ("next item",), 320).save_pretrained(out)
    return out


def write_adapter(model: Path, out: Path, seed: int) -> Path:
    """A LoRA adapter that changes every answer."""
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    get_peft_model(load_model(model), config).save_pretrained(out)
    return out


def load_model(path: Path, adapter: Path | None = None) -> Any:
    """What transformers makes of a model, with an adapter merged into it."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return (
        model if adapter is None else PeftModel.from_pretrained(model, adapter).merge_and_unload()
    )


def make_trie() -> Trie:
    """About 60 items."""
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, CODES_A_LEVEL, (62, N_LEVELS)), axis=0)
    return Trie.from_codes(rng.permutation(codes))


def make_prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 400, length).tolist() for length in lengths]


@contextmanager
def start_vllm(start: Any, **args: Any) -> Iterator[Any]:
    """A block with a vLLM that `start(**args)` gives, small, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
        llm = start(max_model_len=256, num_gpu_blocks_override=512, **args)
        yield llm
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

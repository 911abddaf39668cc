"""Tiny models and catalogues for the decoding tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel

VOCABULARY_SIZE = 300
N_LEVELS = 4
CODES_A_LEVEL = 8
WINDOW = 6

_SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # Wide enough that logits differ clearly: near-uniform models would hide a wrong mask.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GPT2_SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
}
_BLOOM_SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_HEADLESS = {name: value for name, value in _SHAPE.items() if name != "head_dim"}
# Name -> model class, config class, config values.
ARCHITECTURES = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _SHAPE),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SHAPE),
    "mistral": ("MistralForCausalLM", "MistralConfig", _SHAPE | {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _SHAPE | {"sliding_window": WINDOW}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _SHAPE
        | {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 5.0,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2_SHAPE),
    "phi": ("PhiForCausalLM", "PhiConfig", _HEADLESS),
    "cohere": ("CohereForCausalLM", "CohereConfig", _HEADLESS | {"logit_scale": 0.25}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _HEADLESS | {"logits_scaling": 4.0}),
    "bloom": ("BloomForCausalLM", "BloomConfig", _BLOOM_SHAPE),
}


def build_model(architecture: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A randomly initialised tiny model."""
    model_class, config_class, values = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{**values, **changes})
    return getattr(transformers, model_class)(config).eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """A function from an architecture's name to a randomly initialised tiny model."""
    return build_model


@pytest.fixture(scope="session")
def qwen3() -> PreTrainedModel:
    """A tiny Qwen3, shared by all tests that leave it as it is."""
    return build_model("qwen3")


@pytest.fixture(scope="session")
def codes() -> NDArray[np.int64]:
    """(N, L) codes of about 100 items, in no order."""
    rng = np.random.default_rng(0)
    table = np.unique(rng.integers(0, CODES_A_LEVEL, (100, N_LEVELS)), axis=0)
    return rng.permutation(table)


@pytest.fixture(scope="session")
def token_ids() -> list[NDArray[np.int64]]:
    """For each level the tokens of its codes, not in the codes' order."""
    rng = np.random.default_rng(1)
    first = VOCABULARY_SIZE - N_LEVELS * CODES_A_LEVEL
    return [
        rng.permutation(np.arange(CODES_A_LEVEL)) + first + level * CODES_A_LEVEL
        for level in range(N_LEVELS)
    ]


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of different lengths, shorter and longer than the sliding window."""
    rng = np.random.default_rng(2)
    return [rng.integers(0, 200, length).tolist() for length in (9, 14, 5, 1, 9)]

"""What the decoding benchmarks run: Qwen3 of any shape with random weights, random catalogues.

Owns shapes, codes and prompts; random weights cost the same as trained ones. Knows nothing of what
is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from genrec.bench.decode_options import DecodeBench, Sizes
from genrec.bench.train_model import QWEN3_06B, SMALL, TINY
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.types import IndexArray

LEVELS = 4
QWEN_WORDS = 151_936
QWEN3_17B: dict[str, Any] = QWEN3_06B | {"hidden_size": 2048, "intermediate_size": 6144}


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """One model over one catalogue.

    Attributes:
        name: as rows show it.
        model: random weights.
        codes: (N, 4).
        token_ids: for each level the tokens of its codes.
        engine: the embedded one.
        sizes: of prompts and of the search.
    """

    name: str
    model: Any
    codes: IndexArray
    token_ids: list[IndexArray]
    engine: TorchEngine
    sizes: Sizes

    def draw_prompts(self, n_prompts: int, seed: int = 0) -> IndexArray:
        """(n, tokens) of random text."""
        drawn: IndexArray = np.random.default_rng(seed).integers(
            10, int(self.token_ids[0][0]), (n_prompts, self.sizes.n_tokens)
        )
        return drawn


def build_small(options: DecodeBench) -> Setup:
    """Hidden 256, 4 layers, a vocabulary of 33k."""
    shape = TINY if options.quick else SMALL
    name = f"hidden {shape['hidden_size']}"
    return build_setup(name, shape, options.sizes, options.sizes.n_words)


def build_qwen(options: DecodeBench) -> Setup:
    """Qwen3-0.6B's shape and vocabulary."""
    if options.quick:
        return build_setup("tiny for 0.6B", TINY, options.sizes, options.sizes.n_words)
    return build_setup("Qwen3-0.6B shape", QWEN3_06B, options.sizes, QWEN_WORDS)


def build_setup(
    name: str,
    shape: dict[str, Any],
    sizes: Sizes,
    n_words: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Setup:
    """A model of this shape whose code tokens stand after its text tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        **shape, vocab_size=n_words + LEVELS * sizes.n_codes, tie_word_embeddings=True
    )
    build: Any = Qwen3ForCausalLM
    with torch.device(device):
        model = build(config).to(dtype).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None)
    codes = draw_codes(sizes.n_items, sizes.n_codes)
    token_ids = [
        n_words + level * sizes.n_codes + np.arange(sizes.n_codes) for level in range(LEVELS)
    ]
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    return Setup(name, model, codes, token_ids, engine, sizes)


def draw_codes(n_items: int, n_codes: int, seed: int = 0) -> IndexArray:
    """(N, 4) distinct rows of evenly spread codes, in no order."""
    random = np.random.default_rng(seed)
    space = n_codes**LEVELS
    drawn = np.unique(random.integers(0, space, int(1.01 * n_items) + 100))
    while len(drawn) < n_items:
        drawn = np.unique(np.append(drawn, random.integers(0, space, n_items)))
    drawn = random.permutation(drawn)[:n_items]
    return np.stack(np.unravel_index(drawn, (n_codes,) * LEVELS), axis=1).astype(np.int64)

"""The embedded engine against Hugging Face's constrained beam search, same model, same prompts.

Owns the measurement and its rows. Absolute times depend on the machine; the ratios are the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from genrec.bench.rows import BenchRow, build_row, report_rows, time_rivals
from genrec.decode.engine import Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.types import IndexArray

LEVELS, CODES = 4, 256
PROMPT_TOKENS, WIDTH, TEXT_VOCABULARY = 200, 20, 32_000
TARGETS = {("vocab", 1): 6.0, ("level", 1): 14.0, ("vocab", 8): 14.0, ("level", 8): 25.0}
"""Times faster than Hugging Face on 2 cores, prompt 200, width 20 (DESIGN's aims)."""


def bench_decode(*, n_items: int = 100_000, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """Seconds a request and speed ratios at 1 and 8 prompts, as `genrec bench` writes them.

    Args:
        n_items: size of the random catalogue.
        repeats: rounds, in each of which every rival runs once; the median ratio is kept.
        seed: of the model, the catalogue and the prompts.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = _build_model()
    codes = _draw_codes(random, n_items)
    tokens = [TEXT_VOCABULARY + CODES * level + np.arange(CODES) for level in range(LEVELS)]
    engine = TorchEngine(model, Trie.from_codes(codes), tokens)
    allowed = _build_rival_trie(codes, tokens)
    rows = []
    for n_prompts in (1, 8):
        drawn = random.integers(10, TEXT_VOCABULARY, (n_prompts, PROMPT_TOKENS))
        prompts: list[list[int]] = drawn.tolist()
        rivals = _list_rivals(model, engine, allowed, prompts)
        rows += _compare_rivals(rivals, n_prompts, repeats)
    return report_rows(rows)


def _build_model() -> Any:
    config = Qwen3Config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=TEXT_VOCABULARY + LEVELS * CODES,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None)
    return model


def _draw_codes(random: np.random.Generator, n_items: int) -> IndexArray:
    drawn = random.choice(CODES**LEVELS, size=n_items, replace=False)
    return np.stack(np.unravel_index(drawn, (CODES,) * LEVELS), axis=1).astype(np.int64)


def _build_rival_trie(codes: IndexArray, tokens: Sequence[IndexArray]) -> dict[Any, list[int]]:
    """The legal next tokens of every prefix as a dict of tuples: LC-Rec's way."""
    children: dict[Any, set[int]] = {}
    for row in np.stack([tokens[level][codes[:, level]] for level in range(LEVELS)], 1).tolist():
        for depth in range(LEVELS):
            children.setdefault(tuple(row[:depth]), set()).add(row[depth])
    return {prefix: sorted(found) for prefix, found in children.items()}


def _list_rivals(
    model: Any, engine: TorchEngine, allowed: dict[Any, list[int]], prompts: list[list[int]]
) -> dict[str, Callable[[], object]]:
    ids = torch.tensor(prompts)

    def find_allowed(_: int, sequence: torch.Tensor) -> list[int]:
        return allowed[tuple(sequence[PROMPT_TOKENS:].tolist())]

    def generate() -> object:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            max_new_tokens=LEVELS,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=find_allowed,
        )

    return {
        "huggingface": generate,
        "vocab": lambda: engine.rank_prompts(prompts, WIDTH, Search(width=WIDTH)),
        "level": lambda: engine.rank_prompts(prompts, WIDTH, Search(WIDTH, "level")),
    }


def _compare_rivals(
    rivals: dict[str, Callable[[], object]], n_prompts: int, repeats: int
) -> list[BenchRow]:
    seconds = time_rivals(rivals, repeats)
    where = f"{n_prompts} prompts of {PROMPT_TOKENS} tokens, width {WIDTH}"
    rival = np.array(seconds["huggingface"])
    rows = [build_row(f"huggingface, {where}", float(np.median(rival)), "seconds")]
    for name in ("vocab", "level"):
        ratio = float(np.median(rival / np.array(seconds[name])))
        rows.append(
            build_row(
                f"engine {name}, {where}",
                ratio,
                "times faster",
                least=TARGETS[name, n_prompts],
                against="Hugging Face constrained generate, dict trie",
            )
        )
    return rows

"""The vLLM engine against vLLM's own beam search, in one vLLM.

Owns what each is asked, so that both begin with an empty prefix cache and search as widely. Knows
no clock and no table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genrec.decode.engine import Search
from genrec.decode.vllm_engine import VllmEngine

OURS, THEIRS = "vLLM engine", "vLLM beam_search, unconstrained"


def build_vllm_rivals(
    engine: VllmEngine,
    prompts: Sequence[Sequence[int]],
    width: int,
    *,
    aligned: Sequence[Sequence[int]] | None = None,
) -> dict[str, Callable[[], Any]]:
    """What `rows.time_rivals` runs: the engine's answers, and `LLM.beam_search`'s.

    Args:
        engine: over the vLLM that both use.
        prompts: U prompts.
        width: beams a prompt, and answers.
        aligned: the same prompts as the engine gets them, whole blocks long; None gives `prompts`.
    """
    from vllm.sampling_params import BeamSearchParams

    llm = engine.llm
    own = prompts if aligned is None else aligned
    params = BeamSearchParams(
        beam_width=width, max_tokens=len(engine.codebook_sizes), ignore_eos=True
    )

    def run_ours() -> Any:
        llm.reset_prefix_cache()
        return engine.rank_prompts(own, width, Search(width=width))

    def run_theirs() -> Any:
        llm.reset_prefix_cache()
        return llm.beam_search([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)

    return {OURS: run_ours, THEIRS: run_theirs}


def find_valid_share(engine: VllmEngine, outputs: Sequence[Any]) -> float:
    """The share of `beam_search`'s answers that are items of the engine's catalogue."""
    n_levels = len(engine.codebook_sizes)
    codes = engine.trie.children(np.zeros((1, 0), dtype=np.int64)).code[:, None]
    for _ in range(n_levels - 1):
        children = engine.trie.children(codes)
        codes = np.column_stack([codes[children.parent_row], children.code])
    tokens = [ids[codes[:, level]] for level, ids in enumerate(engine.level_token_ids)]
    items = set(zip(*[column.tolist() for column in tokens], strict=True))
    answers = [tuple(beam.tokens[-n_levels:]) for one in outputs for beam in one.sequences]
    return sum(answer in items for answer in answers) / len(answers)

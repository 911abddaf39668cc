"""The check, before the first answer, that a model can be searched the way the engine does.

Owns the choice of a prompt cache, and the refusal of models whose results the engine's shortcuts
would change: it compares them with the model's own forward on a made-up prompt. Knows no trie.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decode.head import LanguageHead
from genrec.decode.lean import LeanPromptCache, can_run_lean
from genrec.decode.prompt_cache import CopiedPromptCache, PromptCache, SharedPromptCache
from genrec.decode.soft_users import ignore_marks
from genrec.errors import ModelError
from genrec.types import IndexArray

logger = logging.getLogger(__name__)

_PROMPT_TOKENS = 12
_LONGEST_PROMPT_TOKENS = 64
# What a model raises when it is handed a mask, a cache or a position that it cannot take.
_REFUSALS = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
_TOLERANCE = 1e-3
_HALF_PRECISION_TOLERANCE = 0.1


def choose_cache(model: PreTrainedModel, head: LanguageHead) -> type[PromptCache]:
    """The fastest way of running beams that gives this model's own logits.

    Raises:
        ModelError: an encoder-decoder model, or one whose logits neither way reproduces.
    """
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder model; genrec decodes decoder-only ones "
            "(Qwen, Llama, Gemma, GPT-2 and the like)"
        )
    faults: list[str] = []
    ways: list[type[PromptCache]] = [SharedPromptCache, CopiedPromptCache]
    if can_run_lean(model):
        ways.insert(0, LeanPromptCache)
    for way in ways:
        fault = _find_fault(model, head, way)
        if fault is None:
            if way is CopiedPromptCache:
                logger.info(
                    "%s copies its prompt to every beam: %s", type(model).__name__, faults[-1]
                )
            return way
        faults.append(f"{way.__name__}: {fault}")
    raise ModelError(
        f"{type(model).__name__} cannot be searched: its own forward gives other logits than "
        f"prefilling once and scoring code tokens only ({'; '.join(faults)}). Merge adapters into "
        "the checkpoint, load it with attn_implementation='sdpa', or use another decoder-only model"
    )


def _find_fault(model: PreTrainedModel, head: LanguageHead, way: type[PromptCache]) -> str | None:
    """What goes wrong when beams run this way, or None when all is well."""
    prompts, steps = _make_probe(model, head)
    try:
        with ignore_marks(model):
            expected = _score_plainly(model, prompts, steps)
            hidden = _run_beams(model, way, prompts, steps)
    except _REFUSALS as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    half = head.dtype in {torch.float16, torch.bfloat16}
    tolerance = (_HALF_PRECISION_TOLERANCE if half else _TOLERANCE) * float(expected.std()) + 1e-5
    ids = torch.from_numpy(np.concatenate(head.token_ids)).to(expected.device)
    logits = torch.cat([head.level_logits(level, hidden) for level in range(len(head.token_ids))])
    gap = float((logits.T - expected[:, ids]).abs().max())
    total_gap = float((head.log_sum_exp(hidden) - expected.logsumexp(dim=1)).abs().max())
    if max(gap, total_gap) <= tolerance:
        return None
    return f"logits differ by {max(gap, total_gap):.2g}, more than {tolerance:.2g}"


def _make_probe(
    model: PreTrainedModel, head: LanguageHead
) -> tuple[list[IndexArray], list[tuple[IndexArray, IndexArray]]]:
    """Two prompts of different lengths, and two steps of (tokens, parents) for three beams each."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or 0
    n_tokens = min(max(_PROMPT_TOKENS, window + 4), _LONGEST_PROMPT_TOKENS)
    n_tokens = max(min(n_tokens, (max_positions(model) or n_tokens + 2) - 2), 2)
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(0, head.vocabulary_size, length) for length in (n_tokens, max(n_tokens - 3, 1))
    ]
    parents = np.array([[1, 1, 0], [2, 0, 2]])
    return prompts, [(rng.integers(0, head.vocabulary_size, (2, 3)), parents) for _ in range(2)]


def _score_plainly(
    model: PreTrainedModel,
    prompts: list[IndexArray],
    steps: list[tuple[IndexArray, IndexArray]],
) -> Tensor:
    """The (14, V) logits of the model's own forward: after the prompts, after each step's beams."""
    (first, _), (second, parents) = steps
    first_logits, second_logits, prompt_logits = [], [], []
    for row, prompt in enumerate(prompts):
        beams = np.stack([first[row][parents[row]], second[row]], axis=1)
        sequences = np.concatenate([np.tile(prompt, (3, 1)), beams], axis=1)
        second_logits.append(_forward(model, sequences)[:, -1])
        sequences = np.concatenate([np.tile(prompt, (3, 1)), first[row][:, None]], axis=1)
        logits = _forward(model, sequences)
        first_logits.append(logits[:, -1])
        prompt_logits.append(logits[:1, -2])
    return torch.cat([*prompt_logits, *first_logits, *second_logits]).float()


def _forward(model: PreTrainedModel, sequences: IndexArray) -> Tensor:
    tokens = torch.from_numpy(sequences).to(model.device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _run_beams(
    model: PreTrainedModel,
    way: type[PromptCache],
    prompts: list[IndexArray],
    steps: list[tuple[IndexArray, IndexArray]],
) -> Tensor:
    """The (14, D) hidden states, in the order of `_score_plainly`."""
    cache = way(model, prompts)
    hidden = [cache.last_hidden]
    for step, (tokens, parents) in enumerate(steps):
        numbers = parents + 1 if step else np.zeros_like(parents)
        fed = cache.feed(
            torch.from_numpy(tokens).to(model.device), torch.from_numpy(numbers).to(model.device)
        )
        hidden.append(fed.flatten(0, 1))
    return torch.cat(hidden)


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model was made for, where its config says."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(limit) if limit else None

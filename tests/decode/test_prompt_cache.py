"""All ways of running beams against the model's plain forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.decode.lean import LeanPromptCache
from genrec.decode.prompt_cache import CopiedPromptCache, SharedPromptCache

TREE_ARCHITECTURES = ("qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2")


def run_plainly(model, prompt, tokens, parents):
    """Hidden state of every beam after every step, each sequence run whole."""
    steps, sequences = [], [list(prompt)] * len(parents[0])
    for step, (step_tokens, step_parents) in enumerate(zip(tokens, parents, strict=True)):
        rows = step_parents if step else range(len(step_tokens))
        sequences = [[*sequences[row], token] for row, token in zip(rows, step_tokens, strict=True)]
        output = model.get_decoder()(torch.tensor(sequences))
        steps.append(output.last_hidden_state[:, -1])
    return steps


WAYS = [
    (way, architecture, attention)
    for way in (SharedPromptCache, CopiedPromptCache)
    for architecture in TREE_ARCHITECTURES
    for attention in ("sdpa", "eager")
]
WAYS += [(LeanPromptCache, architecture, "sdpa") for architecture in ("qwen3", "llama")]


@pytest.mark.parametrize(("cache_class", "architecture", "attention"), WAYS)
def test_beams_see_their_prompt_and_their_own_tokens_only(
    cache_class, attention, architecture, make_model, prompts
):
    model = make_model(architecture, attn_implementation=attention)
    rng = np.random.default_rng(0)
    # The width changes from step to step, and two beams share a parent.
    widths = (4, 5, 3)  # and more than the lean way has room for at first
    widths = (*widths, 70) if cache_class is LeanPromptCache else widths
    tokens = [rng.integers(0, 200, (len(prompts), width)) for width in widths]
    parents = [
        rng.integers(0, before, (len(prompts), width))
        for before, width in zip((1, *widths), widths, strict=False)
    ]
    with torch.inference_mode():
        cache = cache_class(model, [np.array(prompt) for prompt in prompts])
        first_numbers = (0, 1, 1 + widths[0], 1 + widths[0] + widths[1])[: len(widths)]
        found = [
            cache.feed(torch.from_numpy(step), torch.from_numpy(first + chosen))
            for step, chosen, first in zip(tokens, parents, first_numbers, strict=True)
        ]
        for user, prompt in enumerate(prompts):
            alone = model.get_decoder()(torch.tensor([prompt])).last_hidden_state[0, -1]
            torch.testing.assert_close(cache.last_hidden[user], alone, atol=2e-5, rtol=1e-4)
            expected = run_plainly(
                model,
                prompt,
                [step[user].tolist() for step in tokens],
                [[0] * 4, *[step[user].tolist() for step in parents[1:]]],
            )
            for step, hidden in enumerate(expected):
                torch.testing.assert_close(found[step][user], hidden, atol=2e-5, rtol=1e-4)


def test_a_shared_prompt_takes_less_room():
    assert SharedPromptCache.count_tokens(200, 50, 3) == 350
    assert CopiedPromptCache.count_tokens(200, 50, 3) == 10_150
    assert LeanPromptCache.count_tokens(200, 50, 3) == 350

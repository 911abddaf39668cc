"""The other ways of doing what the embedded engine does, on the same model.

Owns Hugging Face's `generate` with a dict trie and without, a loop that runs the prompt once and
copies its cache to every beam, and the matrix products that no way can do without. Knows nothing of
what is reported.

Source: LC-Rec (Zheng et al. 2024) for the constrained way: `prefix_allowed_tokens_fn` over a trie
of Python dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genrec.bench.decode_models import LEVELS, Setup
from genrec.types import IndexArray

Allowed = dict[tuple[int, ...], list[int]]
_FEW_TOKENS = 64


def build_allowed(setup: Setup) -> Allowed:
    """The legal next tokens of every prefix as a dict of tuples."""
    children: dict[tuple[int, ...], set[int]] = {}
    first = torch.tensor([int(ids[0]) for ids in setup.token_ids])
    for row in (torch.from_numpy(setup.codes) + first).tolist():
        for depth in range(LEVELS):
            children.setdefault(tuple(row[:depth]), set()).add(row[depth])
    return {prefix: sorted(found) for prefix, found in children.items()}


def generate(setup: Setup, prompts: IndexArray, allowed: Allowed | None) -> Tensor:
    """(prompts x width, 4) tokens by Hugging Face's own beam search; without a trie, any tokens."""
    ids = torch.from_numpy(prompts).to(setup.model.device)
    n_tokens, width = prompts.shape[1], setup.sizes.width

    def find_allowed(_: int, sequence: Tensor) -> list[int]:
        assert allowed is not None, "only asked about with a trie"
        # Where fewer beams exist than are asked for, `generate` goes on from prefixes of no item.
        return allowed.get(tuple(sequence[n_tokens:].tolist()), [0])

    with torch.inference_mode():
        found: Tensor = setup.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=LEVELS,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=None if allowed is None else find_allowed,
        )
    return found[:, n_tokens:]


def search_copies(setup: Setup, prompts: IndexArray, allowed: Allowed) -> Tensor:
    """The same by a loop that runs each prompt once and copies its cache to every beam."""
    model, width = setup.model, setup.sizes.width
    n_prompts = len(prompts)
    with torch.inference_mode():
        output = model(torch.from_numpy(prompts).to(model.device), use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        scores = torch.zeros(n_prompts, 1, device=model.device)
        beams = torch.empty(n_prompts, 1, 0, dtype=torch.long, device=model.device)
        for level in range(LEVELS):
            total = _add_legal(output.logits[:, -1].float(), scores, beams, allowed)
            scores, flat = total.view(n_prompts, -1).topk(width)
            parent, token = flat // total.shape[-1], flat % total.shape[-1]
            kept = beams.gather(1, parent[:, :, None].expand(-1, -1, level))
            beams = torch.cat([kept, token[:, :, None]], dim=2)
            if level == LEVELS - 1:
                break
            if not level:
                cache.batch_repeat_interleave(width)
            else:
                first = torch.arange(n_prompts, device=model.device)[:, None] * width
                cache.reorder_cache((first + parent).view(-1))
            output = model(token.view(-1, 1), past_key_values=cache, use_cache=True)
    return beams.view(-1, LEVELS)


def _add_legal(logits: Tensor, scores: Tensor, beams: Tensor, allowed: Allowed) -> Tensor:
    """(prompts, beams, V) the score of every next token, -inf where the trie has none."""
    masked = torch.full_like(logits, -torch.inf)
    gains = logits.log_softmax(dim=-1)
    for row, prefix in enumerate(beams.flatten(0, 1).tolist()):
        legal = allowed.get(tuple(prefix), [0])
        masked[row, legal] = gains[row, legal]
    return masked.view(*scores.shape, -1) + scores[:, :, None]


def list_products(setup: Setup, n_prompts: int, *, vocab: bool) -> list[Callable[[], Tensor]]:
    """The products that a search on a Qwen3 cannot do without: weights times tokens, no more.

    All layers over all prompt tokens, but the last layer's keys and values alone, and the rest of
    it for one token a prompt; three steps of every beam; the head's rows of a level, or all of them
    with `vocab`.
    """
    model, sizes = setup.model, setup.sizes
    n_prompt, n_beams = n_prompts * sizes.n_tokens, n_prompts * sizes.width
    steps = [n_beams] * (LEVELS - 1)
    wanted: list[tuple[Tensor, int]] = []
    layers = model.model.layers
    for number, layer in enumerate(layers):
        is_last = number == len(layers) - 1
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                whole = not is_last or name.endswith(("k_proj", "v_proj"))
                first = n_prompt if whole else n_prompts
                wanted += [(module.weight, n_tokens) for n_tokens in (first, *steps)]
    head = model.lm_head.weight
    rows = head if vocab else head[: sizes.n_codes]
    wanted += [(rows, n_tokens) for n_tokens in (n_prompts, *steps)]
    # One block of values serves all weights of a shape: a copy for each would take gigabytes.
    blocks: dict[tuple[int, int], Tensor] = {}
    products = []
    for weight, n_tokens in wanted:
        key = n_tokens, weight.shape[1]
        if key not in blocks:
            blocks[key] = torch.randn(key, device=weight.device).to(weight.dtype)
        products.append(_make_product(weight, blocks[key]))
    return products


def _make_product(weight: Tensor, values: Tensor) -> Callable[[], Tensor]:
    # Of a few tokens the weight stands first: on CPU that is the quicker way; of many it is as the
    # layers have it.
    if len(values) > _FEW_TOKENS:
        return partial(torch.nn.functional.linear, values, weight)
    return partial(torch.matmul, weight, values.T)


def run_products(products: list[Callable[[], Tensor]]) -> None:
    """All of them, one after the other."""
    with torch.inference_mode():
        for multiply in products:
            multiply()


def find_items(setup: Setup, tokens: Tensor) -> list[int]:
    """The item_index of each row of tokens; -1 for one that no item has."""
    first = [int(ids[0]) for ids in setup.token_ids]
    item_of: dict[Any, int] = {
        tuple(row): item for item, row in enumerate((setup.codes + first).tolist())
    }
    return [item_of.get(tuple(row), -1) for row in tokens.tolist()]

"""A batch of prompts run once, and beams run behind them.

Owns the key-value cache of one batch: how prompts of different lengths share it, and how each
user's beams read their prompt without a copy of it. Knows no trie, no score and no head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from genrec.types import IndexArray


class PromptCache(Protocol):
    """The state of a batch after its prompts, extended one code level at a time."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[IndexArray]) -> None:
        """Run U prompts through `model`, each once."""
        ...

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        ...

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The hidden state after each beam's next token.

        Shapes:
            tokens: (U, W) int64, one token a beam.
            parents: (U, W) int64, the number of what each beam goes on from: 0 the prompt, and
                tokens fed before count on from 1 by column.
            returns: (U, W, D).
        """
        ...

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        ...


class SharedPromptCache:
    """One row a user: its beams are W more tokens of that row, told apart by the attention mask.

    A beam sees its prompt, its own earlier tokens and itself. Choosing ancestors is therefore a
    matter of the mask alone: nothing is copied and no cache is reordered between levels.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[IndexArray]) -> None:
        """Run U prompts through `model`, each once."""
        self._decoder = model.get_decoder()
        self._config = model.config.get_text_config(decoder=True)
        # Without a config every layer keeps the whole prompt, so that sliding-window layers have
        # the same columns as full ones and one layout of the mask serves both.
        self._cache = DynamicCache()
        tokens, self._visible, self._positions = _pad_left(prompts, model.device)
        self._lengths = self._visible.sum(dim=1)
        output = self._decoder(
            input_ids=tokens,
            attention_mask=self._visible.long(),
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._last_hidden: Tensor = output.last_hidden_state[:, -1]
        self._dtype = output.last_hidden_state.dtype
        # Which fed tokens each fed token sees, itself included; row and column 0 are the prompt.
        self._sees = self._visible.new_zeros(len(prompts), 1, 1)

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        sees = self._see_ancestors(parents)
        positions = self._lengths[:, None] + sees.sum(dim=2) - 1
        prompt = self._visible[:, None].expand(-1, tokens.shape[1], -1)
        mask = torch.cat([prompt, sees[:, :, 1:]], dim=2)
        output = self._decoder(
            input_ids=tokens,
            attention_mask=self._mask_layers(mask, positions),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        return n_prompt_tokens + n_steps * width

    def _see_ancestors(self, parents: Tensor) -> Tensor:
        """What the next tokens see of those fed, (U, W, 1 + fed + W); kept for later ones."""
        n_users, width = parents.shape
        n_before = self._sees.shape[2]
        rows = parents[:, :, None].expand(-1, -1, n_before)
        own = torch.eye(width, dtype=torch.bool, device=parents.device).expand(n_users, -1, -1)
        sees = torch.cat([self._sees.gather(1, rows), own], dim=2)
        unseen = self._sees.new_zeros(n_users, n_before, width)
        self._sees = torch.cat([torch.cat([self._sees, unseen], dim=2), sees], dim=1)
        return sees

    def _mask_layers(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the model's attention layers want."""
        window = getattr(self._config, "sliding_window", None)
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if window is None or kinds == {"full_attention"}:
            return self._finish_mask(mask)
        fed = self._lengths[:, None] + self._sees.sum(dim=2)[:, 1:] - 1
        key_positions = torch.cat([self._positions, fed], dim=1)
        near = positions[:, :, None] - key_positions[:, None, :] < window
        sliding = self._finish_mask(mask & near)
        if not kinds:
            return sliding
        return {"full_attention": self._finish_mask(mask), "sliding_attention": sliding}

    def _finish_mask(self, mask: Tensor) -> Tensor:
        mask = mask[:, None]
        if self._config._attn_implementation != "eager":
            return mask
        hidden = torch.finfo(self._dtype).min
        return torch.zeros_like(mask, dtype=self._dtype).masked_fill(~mask, hidden)


class CopiedPromptCache:
    """One row a beam: the prompt's cache is copied to each, and rows are reordered between levels.

    Slower, but it asks nothing unusual of a model: the way for linear-attention layers, ALiBi and
    attention kernels that take no mask of one's own.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[IndexArray]) -> None:
        """Run U prompts through `model`, each once."""
        self._decoder = model.get_decoder()
        tokens, self._visible, positions = _pad_left(prompts, model.device)
        self._lengths = self._visible.sum(dim=1)
        output = self._decoder(
            input_ids=tokens,
            attention_mask=self._visible.long(),
            position_ids=positions,
            use_cache=True,
        )
        self._last_hidden: Tensor = output.last_hidden_state[:, -1]
        self._cache = output.past_key_values
        self._n_steps = 0
        self._width = 1
        self._first_number = 0  # of the tokens fed last

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        n_users, width = tokens.shape
        users = torch.arange(n_users, device=tokens.device)[:, None]
        # An absent beam goes on from the prompt, which this cache has left: any row will do.
        columns = (parents - self._first_number).clamp(min=0)
        self._cache.reorder_cache((users * self._width + columns).view(-1))
        self._first_number += self._width
        self._width = width
        self._n_steps += 1
        own = self._visible.new_ones(n_users, self._n_steps)
        mask = torch.cat([self._visible, own], dim=1).repeat_interleave(width, dim=0)
        positions = (self._lengths + self._n_steps - 1).repeat_interleave(width)[:, None]
        output = self._decoder(
            input_ids=tokens.reshape(-1, 1),
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.view(n_users, width, -1)

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        return width * (n_prompt_tokens + n_steps)


def _pad_left(prompts: Sequence[IndexArray], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts aligned at their ends.

    Shapes:
        tokens: (U, T) int64, 0 where padded; the mask hides it, so any token would do.
        visible: (U, T) bool.
        positions: (U, T) int64, counting from each prompt's first token.
    """
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    visible = np.zeros((len(prompts), longest), dtype=np.bool_)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        visible[row, longest - len(prompt) :] = True
    positions = np.maximum(np.cumsum(visible, axis=1) - 1, 0)
    return (
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(visible).to(device),
        torch.from_numpy(positions).to(device),
    )

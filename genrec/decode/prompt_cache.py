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
from torch.nn.functional import one_hot
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
            parents: (U, W) int64, the column each beam had in the last `feed`; unused in the first.
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
        self._widths: list[int] = []
        self._ancestors: list[Tensor] = []

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        self._ancestors = [chosen.gather(1, parents) for chosen in self._ancestors]
        if self._widths:
            self._ancestors.append(parents)
        positions = (self._lengths + len(self._widths))[:, None].expand(tokens.shape)
        mask = self._see_ancestors(tokens.shape[1])
        self._widths.append(tokens.shape[1])
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

    def _see_ancestors(self, width: int) -> Tensor:
        """The (U, W, cached tokens + W) table of what each beam sees."""
        n_users = len(self._visible)
        prompt = self._visible[:, None].expand(-1, width, -1)
        earlier = [
            one_hot(chosen, n_columns).bool()
            for chosen, n_columns in zip(self._ancestors, self._widths, strict=True)
        ]
        own = torch.eye(width, dtype=torch.bool, device=prompt.device).expand(n_users, -1, -1)
        return torch.cat([prompt, *earlier, own], dim=2)

    def _mask_layers(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the model's attention layers want."""
        window = getattr(self._config, "sliding_window", None)
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if window is None or kinds == {"full_attention"}:
            return self._finish_mask(mask)
        beam_positions = [
            (self._lengths + step)[:, None].expand(-1, width)
            for step, width in enumerate(self._widths)
        ]
        key_positions = torch.cat([self._positions, *beam_positions], dim=1)
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

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        n_users, width = tokens.shape
        users = torch.arange(n_users, device=tokens.device)[:, None]
        columns = parents if self._n_steps else torch.zeros_like(parents)
        self._cache.reorder_cache((users * self._width + columns).view(-1))
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

"""A batch of prompts run once, and beams run behind them.

Owns the key-value cache of one batch: how prompts of different lengths share it, and how each
user's beams read their prompt without a copy of it. Knows no trie, no score and no head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from genrec.decode.request import Request
from genrec.types import IndexArray


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of the first columns of a batch, known from earlier requests.

    Shapes:
        states: (layers, 2, U, heads, n_columns, D of a head); what lies under padding is finite.
    """

    states: Tensor

    @property
    def n_columns(self) -> int:
        """How many columns of the padded prompts are known."""
        return self.states.shape[4]

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of one layer, each (U, heads, n_columns, D of a head)."""
        return self.states[layer, 0], self.states[layer, 1]


class PromptCache(Protocol):
    """The state of a batch after its prompts, extended one code level at a time."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[IndexArray], prefix: Prefix | None = None
    ) -> None:
        """Run U prompts through `model`, each once, but for the columns that are known."""
        ...

    @property
    def n_layers(self) -> int:
        """How many layers `read_layer` can give; 0 where nothing can be kept for later."""
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

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all columns so far, each (U, heads, columns, D of a head)."""
        ...

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        ...


class TreeMask:
    """Which columns each token of a batch sees: its prompt, its beam's earlier tokens, itself."""

    def __init__(self, visible: Tensor, positions: Tensor) -> None:
        """Begin with prompts.

        Shapes:
            visible: (U, T) bool, False where padded.
            positions: (U, T) int64.
        """
        self._visible = visible
        self._lengths = visible.sum(dim=1)
        self._prompt_positions = positions
        # Which fed tokens each fed token sees, itself included; row and column 0 are the prompt.
        self._sees = visible.new_zeros(len(visible), 1, 1)

    def see_prompt(self, first: int) -> Tensor:
        """What the prompt's tokens from column `first` on see: (U, T - first, T) bool."""
        columns = torch.arange(self._visible.shape[1], device=self._visible.device)
        rows = columns[first:, None]
        # Padding sees itself: a softmax over nothing is not a number, and would spread.
        return (columns <= rows) & self._visible[:, None] | (columns == rows)

    def grow(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """What the next W tokens see, and their positions; later tokens may see them.

        Shapes:
            parents: (U, W) int64, as `PromptCache.feed` takes them.
            returns: (U, W, T + fed tokens, these included) bool; (U, W) int64.
        """
        n_users, width = parents.shape
        n_before = self._sees.shape[2]
        rows = parents[:, :, None].expand(-1, -1, n_before)
        own = torch.eye(width, dtype=torch.bool, device=parents.device).expand(n_users, -1, -1)
        sees = torch.cat([self._sees.gather(1, rows), own], dim=2)
        unseen = self._sees.new_zeros(n_users, n_before, width)
        self._sees = torch.cat([torch.cat([self._sees, unseen], dim=2), sees], dim=1)
        prompt = self._visible[:, None].expand(-1, width, -1)
        positions = self._lengths[:, None] + sees.sum(dim=2) - 1
        return torch.cat([prompt, sees[:, :, 1:]], dim=2), positions

    @property
    def positions(self) -> Tensor:
        """The (U, T + fed tokens) position of every column."""
        fed = self._lengths[:, None] + self._sees.sum(dim=2)[:, 1:] - 1
        return torch.cat([self._prompt_positions, fed], dim=1)


class SharedPromptCache:
    """One row a user: its beams are W more tokens of that row, told apart by the attention mask.

    A beam sees its prompt, its own earlier tokens and itself. Choosing ancestors is therefore a
    matter of the mask alone: nothing is copied and no cache is reordered between levels.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[IndexArray], prefix: Prefix | None = None
    ) -> None:
        """Run U prompts through `model`, each once, but for the columns that are known."""
        self._decoder = model.get_decoder()
        self._config = model.config.get_text_config(decoder=True)
        # Without a config every layer keeps the whole prompt, so that sliding-window layers have
        # the same columns as full ones and one layout of the mask serves both.
        self._cache = DynamicCache()
        self._dtype = model.dtype
        tokens, visible, positions = pad_left(prompts, model.device)
        self._tree = TreeMask(visible, positions)
        n_known = 0 if prefix is None else prefix.n_columns
        if prefix is not None:
            for layer in range(len(prefix.states)):
                self._cache.update(*prefix.read_layer(layer), layer)
        rest = positions[:, n_known:]
        mask: Tensor | dict[str, Tensor] = visible.long()
        if n_known:
            mask = self._mask_layers(self._tree.see_prompt(n_known), rest)
        self._last_hidden = self._run(tokens[:, n_known:], mask, rest)[:, -1]
        self._dtype = self._last_hidden.dtype

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    @property
    def n_layers(self) -> int:
        """How many layers `read_layer` can give."""
        return len(self._cache.layers)

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        mask, positions = self._tree.grow(parents)
        return self._run(tokens, self._mask_layers(mask, positions), positions)

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all columns so far, each (U, heads, columns, D of a head)."""
        kept: Any = self._cache.layers[layer]
        return kept.keys, kept.values

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        return n_prompt_tokens + n_steps * width

    def _run(self, tokens: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor) -> Tensor:
        output = self._decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _mask_layers(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the model's attention layers want."""
        window = getattr(self._config, "sliding_window", None)
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if window is None or kinds == {"full_attention"}:
            return self._finish_mask(mask)
        near = positions[:, :, None] - self._tree.positions[:, None, :] < window
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

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[IndexArray], prefix: Prefix | None = None
    ) -> None:
        """Run U prompts through `model`, each once; a prefix is not taken."""
        assert prefix is None, "n_layers is 0, so nothing was kept to begin from"
        self._decoder = model.get_decoder()
        tokens, self._visible, positions = pad_left(prompts, model.device)
        self._lengths = self._visible.sum(dim=1)
        output = self._decoder(
            input_ids=tokens,
            attention_mask=self._visible.long(),
            position_ids=positions,
            use_cache=True,
        )
        self._last_hidden: Tensor = output.last_hidden_state[:, -1]
        self._after_prompt = output.past_key_values
        self._cache = copy.deepcopy(self._after_prompt)
        self._n_steps = 0
        self._width = 1
        self._first_number = 0  # of the tokens fed last
        # Of each number: its token, what it goes on from, and how many tokens after the prompt.
        self._tokens, self._parents, self._depths = (tokens.new_zeros(len(tokens), 1),) * 3

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    @property
    def n_layers(self) -> int:
        """None that could be kept for later: states of linear attention are not of one token."""
        return 0

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Nothing: see `n_layers`."""
        raise AssertionError(f"layer {layer} of 0 was asked for")

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token.

        All beams of a call have as many tokens behind the prompt; one with fewer is absent.
        """
        depths = self._depths.gather(1, parents)
        n_steps = int(depths.max())
        columns = parents - self._first_number
        if n_steps != self._n_steps or bool(((columns < 0) & (depths == n_steps)).any()):
            columns = self._run_again(parents, n_steps)
        self._first_number = self._tokens.shape[1]
        self._tokens = torch.cat([self._tokens, tokens], dim=1)
        self._parents = torch.cat([self._parents, parents], dim=1)
        self._depths = torch.cat([self._depths, depths + 1], dim=1)
        # An absent beam goes on from the prompt, which this cache has left: any row will do.
        self._reorder(columns.clamp(min=0))
        return self._run(tokens)

    def _run_again(self, parents: Tensor, n_steps: int) -> Tensor:
        """Take up beams that were left: the column of each after its earlier tokens are run."""
        self._cache = copy.deepcopy(self._after_prompt)
        self._n_steps, self._width = 0, 1
        path, numbers = [], parents
        for _ in range(n_steps):
            path.append(self._tokens.gather(1, numbers))
            numbers = self._parents.gather(1, numbers)
        columns = torch.zeros_like(parents)
        for tokens in reversed(path):
            self._reorder(columns)
            self._run(tokens)
            columns = torch.arange(self._width, device=parents.device).expand_as(parents)
        return columns

    def _reorder(self, columns: Tensor) -> None:
        """Let the (U, W) rows of these columns be the beams."""
        users = torch.arange(len(columns), device=columns.device)[:, None]
        self._cache.reorder_cache((users * self._width + columns).view(-1))
        self._width = columns.shape[1]

    def _run(self, tokens: Tensor) -> Tensor:
        self._n_steps += 1
        own = self._visible.new_ones(len(tokens), self._n_steps)
        mask = torch.cat([self._visible, own], dim=1).repeat_interleave(self._width, dim=0)
        positions = (self._lengths + self._n_steps - 1).repeat_interleave(self._width)[:, None]
        output = self._decoder(
            input_ids=tokens.reshape(-1, 1),
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.view(len(tokens), self._width, -1)

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        return width * (n_prompt_tokens + n_steps)


def split_batches(
    way: type[PromptCache],
    request: Request,
    n_levels: int,
    most_tokens: int,
    kinds: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Rows of a request that fit into the cache together, like lengths side by side.

    Args:
        way: how beams run.
        request: checked.
        n_levels: how many codes or tokens the longest answer has.
        most_tokens: how many tokens may be in the cache; one row alone may take more.
        kinds: rows of different kinds do not run together; None where all are of one.
    """
    lengths = [len(prompt) for prompt in request.prompts]
    kinds = kinds or [0] * len(lengths)
    more = request.search.max_evaluations if request.search.exact else 0
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (kinds[row], lengths[row])):
        n_tokens = way.count_tokens(lengths[row], request.width, n_levels - 1) + more
        is_full = (len(batch) + 1) * n_tokens > most_tokens
        if batch and (is_full or kinds[row] != kinds[batch[0]]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad_left(prompts: Sequence[IndexArray], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
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

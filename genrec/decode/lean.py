"""Llama-like decoders run layer by layer, without what a general forward pass costs.

Owns the arithmetic of one family of models (Llama, Mistral, Qwen 2 and 3) behind the `PromptCache`
interface: the prompt's last layer is computed for its last token alone, heads that share keys read
them once, and keys are written in place. The probe compares it with the model's own forward. Knows
no trie, no score and no head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from genrec.decode.prompt_cache import Prefix, TreeMask, pad_left
from genrec.types import IndexArray

# Checked by hand against transformers 5.19; others run through their own forward.
_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Room for a search of 20 beams over 4 levels; buffers double when it is used up.
_ROOM_TOKENS = 64


class LeanPromptCache:
    """One row a user, as in `SharedPromptCache`, with the layers' arithmetic written out."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[IndexArray], prefix: Prefix | None = None
    ) -> None:
        """Run U prompts through `model`, each once, but for the columns that are known."""
        self._decoder = model.get_decoder()
        tokens, visible, positions = pad_left(prompts, model.device)
        self._tree = TreeMask(visible, positions)
        self._layers = [_Layer(layer, len(prompts)) for layer in self._decoder.layers]
        n_known = 0 if prefix is None else prefix.n_columns
        if prefix is not None:
            for index, layer in enumerate(self._layers):
                layer.append(*prefix.read_layer(index))
        mask = None
        if n_known or not bool(visible.all()):
            mask = self._tree.see_prompt(n_known)
        self._last_hidden = self._run(
            tokens[:, n_known:], positions[:, n_known:], mask, only_last=True
        )[:, 0]

    @property
    def last_hidden(self) -> Tensor:
        """The (U, D) hidden state after each prompt."""
        return self._last_hidden

    @property
    def n_layers(self) -> int:
        """How many layers `read_layer` can give."""
        return len(self._layers)

    def feed(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """The (U, W, D) hidden state after each beam's next token."""
        mask, positions = self._tree.grow(parents)
        return self._run(tokens, positions, mask, only_last=False)

    @staticmethod
    def count_tokens(n_prompt_tokens: int, width: int, n_steps: int) -> int:
        """How many tokens a user keeps in the cache by the end of a search."""
        return n_prompt_tokens + n_steps * width

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all columns so far, each (U, heads, columns, D of a head)."""
        return self._layers[layer].keys, self._layers[layer].values

    def _run(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, *, only_last: bool
    ) -> Tensor:
        """The normed (U, n, D) states of these tokens; n is 1 with `only_last`."""
        hidden = self._decoder.embed_tokens(tokens)
        cosine, sine = self._decoder.rotary_emb(hidden, position_ids=positions)
        turn = cosine[:, :, None], sine[:, :, None]
        added = None
        if mask is not None:
            hide = torch.finfo(hidden.dtype).min
            added = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device)
            added = added.masked_fill_(~mask, hide)[:, None]
        for layer in self._layers[:-1]:
            hidden = layer.run(hidden, turn, added)
        hidden = self._layers[-1].run(hidden, turn, added, only_last=only_last)
        normed: Tensor = self._decoder.norm(hidden)
        return normed


class _Layer:
    """One decoder layer over one batch, with the keys and values of the batch."""

    def __init__(self, layer: Any, n_users: int) -> None:
        """Look up the parts of `layer`."""
        attention, mlp = layer.self_attn, layer.mlp
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._query, self._key, self._value, self._out = (
            _prepare(part)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        )
        self._gate, self._up, self._down = (
            _prepare(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self._act = mlp.act_fn
        self._is_silu = isinstance(self._act, nn.SiLU | SiLUActivation)
        self._query_norm = getattr(attention, "q_norm", None)
        self._key_norm = getattr(attention, "k_norm", None)
        self._head_size: int = attention.head_dim
        self._scale: float = attention.scaling
        self._group: int = attention.num_key_value_groups
        self._n_users, self._n_columns = n_users, 0
        self._store: Tensor | None = None  # (2, U, heads, room, D of a head)

    @property
    def keys(self) -> Tensor:
        """The (U, heads, columns, D of a head) keys so far."""
        assert self._store is not None
        return self._store[0, :, :, : self._n_columns]

    @property
    def values(self) -> Tensor:
        """The values so far, as the keys."""
        assert self._store is not None
        return self._store[1, :, :, : self._n_columns]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values of more columns, (U, heads, n, D of a head)."""
        end = self._n_columns + keys.shape[2]
        if self._store is None or end > self._store.shape[3]:
            room = max(2 * self._n_columns, end + _ROOM_TOKENS)
            grown = keys.new_empty(2, self._n_users, keys.shape[1], room, keys.shape[3])
            if self._store is not None:
                grown[:, :, :, : self._n_columns] = self._store[:, :, :, : self._n_columns]
            self._store = grown
        self._store[0, :, :, self._n_columns : end] = keys
        self._store[1, :, :, self._n_columns : end] = values
        self._n_columns = end

    def run(
        self,
        hidden: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        *,
        only_last: bool = False,
    ) -> Tensor:
        """The (U, n, D) states after this layer; with `only_last` those of the last column."""
        normed = self._norms[0](hidden)
        cosine, sine = turn
        shape = (*normed.shape[:2], -1, self._head_size)
        keys = self._key(normed).view(shape)
        if self._key_norm is not None:
            keys = self._key_norm(keys)
        values = self._value(normed).view(shape)
        self.append(_rotate(keys, cosine, sine).transpose(1, 2), values.transpose(1, 2))
        if only_last:
            normed, hidden = normed[:, -1:], hidden[:, -1:]
            cosine, sine = cosine[:, -1:], sine[:, -1:]
            mask = None if mask is None else mask[:, :, -1:]
        queries = self._query(normed).view(*normed.shape[:2], -1, self._head_size)
        if self._query_norm is not None:
            queries = self._query_norm(queries)
        queries = _rotate(queries, cosine, sine)
        hidden = self._out(self._attend(queries, mask, is_causal=not only_last)).add_(hidden)
        normed = self._norms[1](hidden)
        gate = self._gate(normed)
        gate = silu(gate, inplace=True) if self._is_silu else self._act(gate)
        return self._down(gate.mul_(self._up(normed))).add_(hidden)

    def _attend(self, queries: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
        """What each query (U, n, heads, D of a head) reads: (U, n, heads * D of a head)."""
        n_users, n_queries, n_heads, size = queries.shape
        queries = queries.transpose(1, 2)
        keys, values = self.keys, self.values
        if mask is None and is_causal:
            if self._group > 1:
                keys, values = (
                    each[:, :, None]
                    .expand(-1, -1, self._group, -1, -1)
                    .reshape(n_users, n_heads, -1, size)
                    for each in (keys, values)
                )
            read = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self._scale
            )
        else:
            # Heads that share keys become more queries of one head: keys are read once, not copied.
            shared = queries.reshape(n_users, -1, self._group * n_queries, size)
            if mask is not None and self._group > 1:
                mask = mask.repeat(1, 1, self._group, 1)
            read = scaled_dot_product_attention(
                shared, keys, values, attn_mask=mask, scale=self._scale
            ).reshape(n_users, n_heads, n_queries, size)
        return read.transpose(1, 2).reshape(n_users, n_queries, -1)


def _prepare(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """How a projection is applied; a plain one is spared the price of a module call."""
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return module  # adapters, quantised weights: they know better
    weight, bias = module.weight, module.bias
    return lambda values: linear(values, weight, bias)


def _rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions; halves are pairs, as in all models of the family.

    Shapes:
        values: (U, n, heads, D of a head); cosine, sine: (U, n, 1, D of a head).
    """
    half = values.shape[-1] // 2
    turned = values * cosine
    turned[..., :half].addcmul_(values[..., half:], sine[..., :half], value=-1)
    turned[..., half:].addcmul_(values[..., :half], sine[..., half:])
    return turned


def can_run_lean(model: PreTrainedModel) -> bool:
    """Whether the model is of the family that is written out here; the probe has the last word."""
    config = model.config.get_text_config(decoder=True)
    # A window hides what is far from a token, farther than a short probe would show.
    kinds = set(getattr(config, "layer_types", None) or ())
    has_window = bool(getattr(config, "sliding_window", None)) and kinds != {"full_attention"}
    return config.model_type in _FAMILIES and not has_window

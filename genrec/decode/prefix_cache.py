"""Keys and values of prompts' beginnings, kept from one request to the next.

Owns a bounded store of blocks of tokens, found again by everything that comes before them and by
whose weights made them, and forgotten by least recent use. Knows no model and no trie.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decode.adapters import find_adapters
from genrec.decode.prompt_cache import CopiedPromptCache, Prefix, PromptCache
from genrec.decode.soft_users import find_users
from genrec.errors import CapacityError
from genrec.types import IndexArray

_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What the cache has done since it was made.

    Attributes:
        hits: prompts whose beginning was known.
        misses: prompts that began anew.
        saved_tokens: prompt tokens that were not run.
        stored_bytes: keys and values held now.
    """

    hits: int = 0
    misses: int = 0
    saved_tokens: int = 0
    stored_bytes: int = 0


class PrefixCache:
    """Blocks of 16 tokens with their keys and values, each under the hash of its whole prefix.

    Prompts that share an instruction or a history's beginning share its blocks.
    """

    def __init__(self, max_bytes: int) -> None:
        """Make an empty cache.

        Args:
            max_bytes: at most so much is held; blocks that were not used for longest go first.

        Raises:
            CapacityError: less than 1 byte.
        """
        if max_bytes < 1:
            raise CapacityError(
                f"a prefix cache of {max_bytes} bytes holds nothing; give it more, or 0 to the "
                f"engine for none"
            )
        self.max_bytes = max_bytes
        # Key: (whose weights, token bytes up to the block's end). Used last stands last.
        self._blocks: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._stats = PrefixStats()
        self._lock = threading.Lock()

    @property
    def stats(self) -> PrefixStats:
        """What it has done so far; safe to read from another thread."""
        return self._stats

    def run_prompts(
        self, way: type[PromptCache], model: PreTrainedModel, prompts: Sequence[IndexArray]
    ) -> PromptCache:
        """Run a batch's prompts, but for beginnings that are known, and keep what is new.

        Prompts with soft user tokens run whole: their keys are one user's, whatever their tokens.
        """
        owner, soft = _name_owner(model), find_users(model)
        own = [soft is None or soft.token_id not in prompt for prompt in prompts]
        if way is CopiedPromptCache:
            return way(model, prompts)
        blocks = [
            self._find_blocks(owner, prompt) if may else []
            for prompt, may in zip(prompts, own, strict=True)
        ]
        prefix = _join_prefix(prompts, blocks)
        cache = way(model, prompts, prefix)
        rows = [row for row, may in enumerate(own) if may]
        with self._lock:
            self._store(owner, prompts, rows, cache)
            n_hits = sum(map(bool, blocks))
            n_known = 0 if prefix is None else prefix.n_columns - max(map(len, prompts))
            saved = 0 if prefix is None else sum(max(len(each) + n_known, 0) for each in prompts)
            self._stats = replace(
                self._stats,
                hits=self._stats.hits + n_hits,
                misses=self._stats.misses + len(prompts) - n_hits,
                saved_tokens=self._stats.saved_tokens + saved,
            )
        return cache

    def count_known(self, model: PreTrainedModel, prompt: IndexArray) -> int:
        """How many of the prompt's first tokens need not run."""
        return len(self._find_blocks(_name_owner(model), prompt)) * _BLOCK_TOKENS

    def _find_blocks(self, owner: Hashable, prompt: IndexArray) -> list[Tensor]:
        """The blocks that a prompt begins with; its last token is always left to run.

        Shapes:
            each block: (layers, 2, heads, 16, D of a head).
        """
        found: list[Tensor] = []
        keys = _list_keys(owner, prompt[:-1])
        with self._lock:
            for key in keys:
                if key not in self._blocks:
                    break
                found.append(self._blocks[key])
            # The first block is touched last: what others build on is forgotten after them.
            for key in reversed(keys[: len(found)]):
                self._blocks.move_to_end(key)
        return found

    def _store(
        self, owner: Hashable, prompts: Sequence[IndexArray], rows: list[int], cache: PromptCache
    ) -> None:
        """Keep the blocks of prompts that were just run and are not held yet."""
        layers = [cache.read_layer(layer) for layer in range(cache.n_layers)]
        if len({keys.shape[1:2] + keys.shape[3:] for keys, _ in layers}) != 1:
            return  # layers of different shapes do not go into one tensor; such models are rare
        n_columns, held = max(map(len, prompts)), self._stats.stored_bytes
        for row in rows:
            first = n_columns - len(prompts[row])
            keys = _list_keys(owner, prompts[row][:-1])
            for number, key in reversed(list(enumerate(keys))):
                if key not in self._blocks:
                    block = _copy_block(layers, row, first + number * _BLOCK_TOKENS)
                    self._blocks[key] = block
                    held += block.nbytes
                self._blocks.move_to_end(key)
            while held > self.max_bytes:
                held -= self._blocks.popitem(last=False)[1].nbytes
        self._stats = replace(self._stats, stored_bytes=held)

    def clear(self) -> None:
        """Forget all blocks; the counts stay."""
        with self._lock:
            self._blocks.clear()
            self._stats = replace(self._stats, stored_bytes=0)


def _join_prefix(prompts: Sequence[IndexArray], blocks: Sequence[list[Tensor]]) -> Prefix | None:
    """What is known of a batch, as the leading columns of its prompts aligned at their ends.

    Every row begins to run at the same column, so the row with most left to run decides.

    Args:
        prompts: U token id sequences.
        blocks: for each what is known.

    Returns:
        None where nothing that is known helps: some longest prompt has to run whole.
    """
    n_columns = max(map(len, prompts))
    n_rest = max(
        len(prompt) - len(known) * _BLOCK_TOKENS
        for prompt, known in zip(prompts, blocks, strict=True)
    )
    if n_rest == n_columns:
        return None
    block = next(known[0] for known in blocks if known)
    n_layers, _, n_heads, _, size = block.shape
    n_known = n_columns - n_rest
    states = block.new_zeros(n_layers, 2, len(prompts), n_heads, n_known, size)
    for row, (prompt, known) in enumerate(zip(prompts, blocks, strict=True)):
        n_own = len(prompt) - n_rest
        if n_own > 0:
            states[:, :, row, :, n_known - n_own :] = torch.cat(known, dim=3)[:, :, :, :n_own]
    return Prefix(states)


def _name_owner(model: PreTrainedModel) -> str | None:
    """Whose keys and values a run of the model gives: an adapter's, or the model's as trained."""
    adapters = find_adapters(model)
    return None if adapters is None else adapters.current


def _list_keys(owner: Hashable, tokens: IndexArray) -> list[Hashable]:
    n_blocks = len(tokens) // _BLOCK_TOKENS
    # Tokens themselves, no hash of them: two prefixes are never taken for one another.
    return [(owner, tokens[: end * _BLOCK_TOKENS].tobytes()) for end in range(1, n_blocks + 1)]


def _copy_block(layers: Sequence[tuple[Tensor, Tensor]], row: int, begin: int) -> Tensor:
    columns = slice(begin, begin + _BLOCK_TOKENS)
    return torch.stack(
        [torch.stack([keys[row, :, columns], values[row, :, columns]]) for keys, values in layers]
    )

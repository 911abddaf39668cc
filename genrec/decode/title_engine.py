"""Titles decoded by a language model in memory: any checkpoint answers with items that exist.

Owns the run of one batch after another: prefill, score the legal tokens, keep the best, go on.
Knows neither items' names nor where model and trie came from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decode.engine import PLAIN, ItemFilter, Normalize, Search
from genrec.decode.head import LanguageHead
from genrec.decode.probe import choose_cache, max_positions
from genrec.decode.prompt_cache import CopiedPromptCache, PromptCache, split_batches
from genrec.decode.request import EngineLimits, Request, check_request, narrow_filters
from genrec.decode.search import Question, drive_search, join_batches
from genrec.decode.title_search import search_titles
from genrec.decode.title_trie import TitleTrie
from genrec.errors import DecodeError, ModelError
from genrec.types import IndexArray, RankedItems

# Steps are many, and each adds a token a beam: the mask of what sees what grows by their square.
_BATCH_TOKENS = 8192
_PROBE_TOKENS = 64


class TitleEngine:
    """Ranks a catalogue's items after a prompt by the titles that a language model would write.

    One prefill a prompt and one pass a token of the longest title that is still in the running.
    The head scores legal tokens only, and with `normalize="vocab"` all of them in a stream.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: TitleTrie,
        *,
        batch_tokens: int = _BATCH_TOKENS,
        way: type[PromptCache] | None = None,
    ) -> None:
        """Check that model and trie belong together, and that the model can be searched.

        Args:
            model: a decoder-only language model, adapters merged; it is put into eval mode.
            trie: the titles in the tokens of the model's tokenizer.
            batch_tokens: how many tokens may be in the cache at once; more runs more users together
                and takes more memory. One user always runs, whatever it takes.
            way: how beams run, where an earlier engine of this model has found it; None compares
                the ways with the model's own forward.

        Raises:
            ModelError: not decoder-only, no head, tokens outside of it, or logits that the engine's
                method does not reproduce.
        """
        model.eval()
        self.trie = trie
        self._model = model
        self._batch_tokens = batch_tokens
        with torch.inference_mode():
            # The probe compares some of the tokens that will be scored.
            some = np.unique(trie.tokens)[:_PROBE_TOKENS].astype(np.int64)
            self._head = LanguageHead(model, [some])
            self._check_tokens()
            self._cache = choose_cache(model, self._head) if way is None else way
        positions = max_positions(model)
        self._limits = EngineLimits(
            n_items=trie.n_items,
            vocabulary_size=self._head.vocabulary_size,
            max_prompt_tokens=None if positions is None else positions - (trie.n_levels - 1),
        )
        if self._limits.max_prompt_tokens is not None and self._limits.max_prompt_tokens < 1:
            raise ModelError(
                f"the model takes {positions} tokens, and the longest title alone has "
                f"{trie.n_levels}; cut titles with a lower max_title_tokens"
            )

    def _check_tokens(self) -> None:
        largest, n_rows = int(self.trie.tokens.max()), self._head.vocabulary_size
        if largest >= n_rows:
            raise ModelError(
                f"titles hold token {largest}, and the model's head has {n_rows} rows; encode them "
                f"with the model's own tokenizer"
            )

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds, those without a title too."""
        return self.trie.n_items

    @property
    def answerable(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
        """(N,) which items have a title and can be answers; None where all have."""
        return None if self.trie.n_titles == self.n_items else self.trie.answerable

    @property
    def model(self) -> PreTrainedModel:
        """The language model that answers."""
        return self._model

    @property
    def way(self) -> type[PromptCache]:
        """How beams run on this model."""
        return self._cache

    def replace_trie(self, trie: TitleTrie) -> TitleEngine:
        """An engine for other titles over the same weights, which are shared; this one goes on.

        Raises:
            ModelError: titles of another tokenizer.
        """
        other = copy.copy(self)
        other.trie = trie
        other._check_tokens()
        other._limits = replace(self._limits, n_items=trie.n_items)
        return other

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt, as `Engine` describes.

        Items without a title are never answers. With `exact`, `max_evaluations` counts prefixes of
        any length.

        Raises:
            DecodeError: `normalize="level"`, since titles have no levels of their own tokens; or
                `exact` with a model whose prompt is copied to each beam.
        """
        request = check_request(self._limits, prompts, k, search, filters)
        if self.answerable is not None:
            # Checked once more: what a filter leaves may have no title.
            filters = narrow_filters(request.filters, self.answerable)
            request = check_request(self._limits, prompts, k, search, filters)
        self._check_search(search)
        parts: list[tuple[list[int], RankedItems]] = []
        with torch.inference_mode():
            for users in split_batches(
                self._cache, request, self.trie.n_levels, self._batch_tokens
            ):
                parts.append((users, self._rank_batch(request.select(users))))
        return join_batches(parts, len(request.prompts), k)

    def _check_search(self, search: Search) -> None:
        if search.normalize == "level":
            raise DecodeError(
                "normalize='level' compares the codes of one level, and the tokens of titles have "
                "no levels; use 'vocab', or 'child' for the tokens that are legal after a prefix"
            )
        if search.groups > 1:
            raise DecodeError(
                f"groups={search.groups}: diverse lists are for codes, whose first one is a kind "
                f"of item; the first token of a title is not; use groups=1"
            )
        if search.exact and issubclass(self._cache, CopiedPromptCache):
            raise DecodeError(
                f"exact=True goes back to earlier prefixes, and {type(self._model).__name__} runs "
                f"with a cache that only goes on; search without exact and with more width"
            )

    def _rank_batch(self, request: Request) -> RankedItems:
        """The answers to a batch's prompts."""
        cache = self._cache(self._model, request.prompts)
        is_first = True

        def answer(question: Question) -> Tensor:
            nonlocal is_first
            hidden = (
                cache.last_hidden[:, None]
                if is_first
                else cache.feed(self._on_device(question.codes), self._on_device(question.parents))
            )
            is_first = False
            return self._score(question, hidden, request.search.normalize)

        return drive_search(search_titles(self.trie, request), answer)

    def _score(self, question: Question, hidden: Tensor, normalize: Normalize) -> Tensor:
        """The (C,) log-probability of each child after its prefix, at most 0.

        Shapes:
            hidden: (U, W, D), the state after each prefix.
        """
        users, columns, places = question.list_prefixes()
        flat = hidden[self._on_device(users), self._on_device(columns)].to(self._head.device)
        row = self._on_device(places)
        gains = self._head.pair_logits(flat, row, self._on_device(question.code))
        if normalize == "vocab":
            total = self._head.log_sum_exp(flat)
        else:
            total = _sum_children(gains, row, len(flat))
        # Rounding can lift a near-certain token above 0, which would break the certificate's bound.
        return (gains - total[row]).clamp(max=0.0)

    def _on_device(self, values: IndexArray) -> Tensor:
        return torch.from_numpy(values).to(self._head.device)


def _sum_children(logits: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """(n,) the log-sum-exp of the logits of each row; -inf for a row without any."""
    most = logits.new_full((n_rows,), -torch.inf).scatter_reduce(0, row, logits, "amax")
    sums = torch.zeros_like(most).index_add(0, row, torch.exp(logits - most[row]))
    return most + torch.log(sums)

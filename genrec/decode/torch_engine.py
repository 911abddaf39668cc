"""The embedded engine: trie-constrained beam search on any Hugging Face decoder-only model.

Owns the search over one batch after another: prefill, score the legal codes, keep the best, go on.
Knows neither items' names nor where the model, the trie and the code tokens came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decode.engine import PLAIN, ItemFilter, Normalize, Search
from genrec.decode.head import LanguageHead
from genrec.decode.prefix_cache import PrefixCache, PrefixStats
from genrec.decode.probe import choose_cache, max_positions
from genrec.decode.prompt_cache import PromptCache, split_batches
from genrec.decode.request import EngineLimits, Request, check_request
from genrec.decode.search import Question, drive_search, join_batches, search_items
from genrec.decode.soft_users import check_vectors, find_users
from genrec.decode.trace import SearchTrace
from genrec.decode.trie import Trie
from genrec.errors import DataError, ModelError, join_problems
from genrec.types import IndexArray, RankedItems

# At 28 layers of 8 heads of 128 (Qwen3-0.6B) this many cached tokens take 1.9 GB in float32.
_BATCH_TOKENS = 8192


class TorchEngine:
    """Ranks a catalogue's items after a prompt with one prefill a prompt and one pass a code level.

    Beams attend to the shared prompt through a tree mask, the head multiplies one level's rows,
    and the trie gives the children of all beams at once. With `normalize="vocab"` the answers equal
    those of Hugging Face's constrained `generate(num_beams=width)`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: Trie,
        level_token_ids: Sequence[IndexArray],
        *,
        batch_tokens: int = _BATCH_TOKENS,
        way: type[PromptCache] | None = None,
    ) -> None:
        """Check that model, trie and tokens belong together, and that the model can be searched.

        Args:
            model: a decoder-only language model, adapters merged; it is put into eval mode.
            trie: the legal code sequences; answers are its item_index.
            level_token_ids: for each level the token id of code 0, 1, 2 and so on.
            batch_tokens: how many tokens may be in the cache at once; more runs more users together
                and takes more memory. One user always runs, whatever it takes.
            way: how beams run, where an earlier engine of this model has found it (its `way`); None
                compares the ways with the model's own forward.

        Raises:
            ModelError: not decoder-only, no head, tokens that do not fit the trie or the head, or
                logits that the engine's method does not reproduce.
        """
        check_levels(trie, level_token_ids)
        self.trie = trie
        model.eval()
        self._model = model
        self._batch_tokens = batch_tokens
        with torch.inference_mode():
            self._head = LanguageHead(model, level_token_ids)
            self._cache = choose_cache(model, self._head) if way is None else way
        self._prefixes: PrefixCache | None = None
        positions = max_positions(model)
        self._limits = EngineLimits(
            n_items=trie.n_items,
            vocabulary_size=self._head.vocabulary_size,
            max_prompt_tokens=None if positions is None else positions - (trie.n_levels - 1),
        )

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return self.trie.n_items

    @property
    def model(self) -> PreTrainedModel:
        """The language model that answers."""
        return self._model

    @property
    def way(self) -> type[PromptCache]:
        """How beams run on this model."""
        return self._cache

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        return tuple(len(ids) for ids in self._head.token_ids)

    @property
    def prefix_stats(self) -> PrefixStats:
        """What the cache of prompts' beginnings has done; all 0 without one."""
        return PrefixStats() if self._prefixes is None else self._prefixes.stats

    def keep_prefixes(self, max_bytes: int) -> None:
        """From now on, run the beginning that prompts share with earlier ones no more.

        Answers stay the same but for rounding. Weights must not change afterwards, other than by
        `decode.adapters`: what was kept of them would not.

        Args:
            max_bytes: of keys and values to keep at most; 0 keeps none.
        """
        self._prefixes = PrefixCache(max_bytes) if max_bytes else None

    def replace_trie(self, trie: Trie) -> TorchEngine:
        """An engine for other items over the same weights, which are shared; this one goes on.

        Raises:
            ModelError: codes that there is no token for.
        """
        check_levels(trie, self._head.token_ids)
        other = copy.copy(self)
        other.trie = trie
        other._limits = replace(self._limits, n_items=trie.n_items)
        return other

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
        user_vectors: NDArray[np.float32] | None = None,
        trace: SearchTrace | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt, as `Engine` describes.

        Args:
            prompts: as for `Engine`.
            k: as for `Engine`.
            search: as for `Engine`.
            filters: as for `Engine`.
            user_vectors: for each prompt the embedding of its user, which a model with soft user
                tokens sees where the prompt has marks (see `soft_users`).
            trace: records the search, of one prompt.

        Shapes:
            user_vectors: (U, dimensions) float32.
        """
        request = check_request(self._limits, prompts, k, search, filters)
        shown = self._check_users(request, user_vectors)
        parts: list[tuple[list[int], RankedItems]] = []
        with torch.inference_mode():
            for users in self._split_batches(request):
                with self._show_users(request, users, shown):
                    parts.append((users, self._rank_batch(request, users, trace)))
        return join_batches(parts, len(request.prompts), k)

    def _check_users(
        self, request: Request, user_vectors: NDArray[np.float32] | None
    ) -> Tensor | None:
        users = find_users(self._model)
        if user_vectors is None:
            return None
        if users is None:
            raise ModelError(
                "user embeddings were given to a model without soft user tokens; leave them out, "
                "or train with soft_user_tokens"
            )
        if len(user_vectors) != len(request.prompts):
            raise DataError(
                f"{len(user_vectors)} user embeddings were given for {len(request.prompts)} "
                f"prompts; give one a prompt"
            )
        return check_vectors(user_vectors, users.n_dimensions)

    def _show_users(
        self, request: Request, users: list[int], vectors: Tensor | None
    ) -> AbstractContextManager[None]:
        """A block in which the marks of a batch's prompts stand for their users."""
        soft = find_users(self._model)
        if soft is None or vectors is None:
            return nullcontext()
        marked = [user for user in users if soft.token_id in request.prompts[user]]
        return soft.show(vectors[marked])

    def _split_batches(self, request: Request) -> Iterator[list[int]]:
        kinds = None
        if self._prefixes is not None:
            # A batch runs as many tokens of each prompt as of the least known one.
            kinds = [
                (len(prompt) - self._prefixes.count_known(self._model, prompt)).bit_length()
                for prompt in request.prompts
            ]
        return split_batches(self._cache, request, self.trie.n_levels, self._batch_tokens, kinds)

    def _rank_batch(
        self, request: Request, users: list[int], trace: SearchTrace | None
    ) -> RankedItems:
        """The answers to some of the request's prompts."""
        part = request.select(users)
        if self._prefixes is None:
            cache = self._cache(self._model, part.prompts)
        else:
            cache = self._prefixes.run_prompts(self._cache, self._model, part.prompts)
        dialogue = search_items(self.trie, part)
        if trace is not None:
            dialogue = trace.watch(dialogue, self.trie)

        def answer(question: Question) -> Tensor:
            if question.level == 0:
                hidden = cache.last_hidden[:, None]
            else:
                tokens = self._head.token_ids[question.level - 1][question.codes]
                hidden = cache.feed(self._on_device(tokens), self._on_device(question.parents))
            return self._score(question, hidden, request.search.normalize)

        return drive_search(dialogue, answer)

    def _score(self, question: Question, hidden: Tensor, normalize: Normalize) -> Tensor:
        """The (C,) log-probability of each child after its prefix, at most 0.

        Shapes:
            hidden: (U, W, D), the state after each prefix.
        """
        users, columns, places = question.list_prefixes()
        flat = hidden[self._on_device(users), self._on_device(columns)].to(self._head.device)
        row = self._on_device(places)
        code = self._on_device(question.code)
        logits = self._head.level_logits(question.level, flat)
        gains = logits[code, row]
        if normalize == "vocab":
            total = self._head.log_sum_exp(flat)
        elif normalize == "level":
            total = torch.logsumexp(logits, dim=0)
        else:
            legal = torch.full_like(logits, -torch.inf)
            legal[code, row] = gains
            total = torch.logsumexp(legal, dim=0)
        # Rounding can lift a near-certain code above 0, which would break the certificate's bound.
        return (gains - total[row]).clamp(max=0.0)

    def _on_device(self, values: IndexArray) -> Tensor:
        return torch.from_numpy(values).to(self._head.device)


def check_levels(trie: Trie, level_token_ids: Sequence[IndexArray]) -> None:
    """Refuse tokens that do not cover the codes of a trie, all problems at once."""
    if len(level_token_ids) != trie.n_levels:
        raise ModelError(
            f"tokens for {len(level_token_ids)} levels were given, but items have {trie.n_levels} "
            "codes; load the tokens and the codes from one export"
        )
    problems = [
        f"level {level} has tokens for {len(ids)} codes, but codes go up to {needed - 1}"
        for level, (ids, needed) in enumerate(zip(level_token_ids, trie.code_counts, strict=True))
        if len(ids) < needed
    ]
    if problems:
        raise ModelError(join_problems("code tokens do not cover the catalogue's codes", problems))

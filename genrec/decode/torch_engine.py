"""The embedded engine: trie-constrained beam search on any Hugging Face decoder-only model.

Owns the search over one batch after another: prefill, score the legal codes, keep the best, go on.
Knows neither items' names nor where the model, the trie and the code tokens came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from genrec.decode.beam import keep_best
from genrec.decode.engine import EngineLimits, Normalize, Request, check_request
from genrec.decode.head import LanguageHead
from genrec.decode.probe import choose_cache, max_positions
from genrec.decode.prompt_cache import PromptCache
from genrec.decode.soft_users import check_vectors, find_users
from genrec.decode.trie import DeadNodes, Trie
from genrec.errors import DataError, ModelError, join_problems
from genrec.types import FloatArray, IndexArray, RankedItems

# At 28 layers of 8 heads of 128 (Qwen3-0.6B) this many cached tokens take 1.9 GB in float32.
_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class _Beams:
    """The live prefixes of U users at one level; node is -1 where a user has fewer than W."""

    nodes: IndexArray
    scores: FloatArray


@dataclass(frozen=True, slots=True)
class _Candidates:
    """All legal extensions of a level's beams, flat, in user order."""

    user_row: IndexArray
    beam: IndexArray
    node: IndexArray
    code: IndexArray
    scores: Tensor


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
        _check_levels(trie, level_token_ids)
        self.trie = trie
        model.eval()
        self._model = model
        self._batch_tokens = batch_tokens
        with torch.inference_mode():
            self._head = LanguageHead(model, level_token_ids)
            self._cache = choose_cache(model, self._head) if way is None else way
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
    def way(self) -> type[PromptCache]:
        """How beams run on this model."""
        return self._cache

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        return tuple(len(ids) for ids in self._head.token_ids)

    def replace_trie(self, trie: Trie) -> TorchEngine:
        """An engine for other items over the same weights, which are shared; this one goes on.

        Raises:
            ModelError: codes that there is no token for.
        """
        _check_levels(trie, self._head.token_ids)
        other = copy.copy(self)
        other.trie = trie
        other._limits = replace(self._limits, n_items=trie.n_items)
        return other

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        *,
        width: int | None = None,
        excluded: Sequence[IndexArray] | None = None,
        normalize: Normalize = "vocab",
        user_vectors: NDArray[np.float32] | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt, as `Engine` describes.

        Args:
            prompts: as for `Engine`.
            k: as for `Engine`.
            width: as for `Engine`.
            excluded: as for `Engine`.
            normalize: as for `Engine`.
            user_vectors: for each prompt the embedding of its user, which a model with soft user
                tokens sees where the prompt has marks (see `soft_users`).

        Shapes:
            user_vectors: (U, dimensions) float32.
        """
        request = check_request(
            self._limits, prompts, k, width=width, excluded=excluded, normalize=normalize
        )
        shown = self._check_users(request, user_vectors)
        n_prompts = len(request.prompts)
        ranked = RankedItems(
            item_index=np.full((n_prompts, k), -1, dtype=np.int64),
            scores=np.full((n_prompts, k), -np.inf, dtype=np.float32),
            certified=np.zeros(n_prompts, dtype=np.bool_),
        )
        with torch.inference_mode():
            for users in self._split_batches(request):
                with self._show_users(request, users, shown):
                    items, scores, certified = self._rank_batch(request, users)
                ranked.item_index[users] = items
                ranked.scores[users] = scores
                ranked.certified[users] = certified
        return ranked

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
        """Rows of the request that fit into the cache together, like lengths side by side."""
        n_steps = self.trie.n_levels - 1
        batch: list[int] = []
        for user in sorted(range(len(request.prompts)), key=lambda row: len(request.prompts[row])):
            n_tokens = self._cache.count_tokens(len(request.prompts[user]), request.width, n_steps)
            if batch and (len(batch) + 1) * n_tokens > self._batch_tokens:
                yield batch
                batch = []
            batch.append(user)
        if batch:
            yield batch

    def _rank_batch(
        self, request: Request, users: list[int]
    ) -> tuple[IndexArray, FloatArray, NDArray[np.bool_]]:
        """Item_index (U, k), scores (U, k) and certified (U,) of some of the request's prompts."""
        cache = self._cache(self._model, [request.prompts[user] for user in users])
        dead = self.trie.dead_nodes([request.excluded[user] for user in users])
        hidden = cache.last_hidden[:, None]
        beams = _Beams(
            nodes=np.zeros((len(users), 1), dtype=np.int64),
            scores=np.zeros((len(users), 1), dtype=np.float32),
        )
        bound = np.full(len(users), -np.inf, dtype=np.float32)
        for level in range(self.trie.n_levels - 1):
            found = self._score_children(level, beams, hidden, dead, request.normalize)
            kept = keep_best(found.scores, found.user_row, len(users), request.width, found.node)
            bound = np.maximum(bound, kept.best_left_out)
            # An absent beam repeats the last candidate's token; nothing is ever expanded from it.
            beams = _Beams(np.where(kept.index < 0, -1, found.node[kept.index]), kept.scores)
            tokens = self._head.token_ids[level][found.code[kept.index]]
            parents = np.where(kept.index < 0, 0, found.beam[kept.index])
            hidden = cache.feed(self._on_device(tokens), self._on_device(parents))
        found = self._score_children(self.trie.n_levels - 1, beams, hidden, dead, request.normalize)
        items = self.trie.items(found.node)
        best = keep_best(found.scores, found.user_row, len(users), request.k, items)
        assert (best.index >= 0).all(), "k legal items exist and width >= k, so k were reached"
        return items[best.index], best.scores, bound < best.scores[:, -1]

    def _score_children(
        self, level: int, beams: _Beams, hidden: Tensor, dead: DeadNodes, normalize: Normalize
    ) -> _Candidates:
        """Every legal extension of the beams with its score."""
        users, columns = np.nonzero(beams.nodes >= 0)
        children = self.trie.expand(level, beams.nodes[users, columns])
        legal = ~dead.contains(level + 1, users[children.parent_row], children.node)
        row, node, code = children.parent_row[legal], children.node[legal], children.code[legal]
        flat = hidden[self._on_device(users), self._on_device(columns)].to(self._head.device)
        gains = self._score_codes(
            level, flat, self._on_device(row), self._on_device(code), normalize
        )
        scores = torch.from_numpy(beams.scores[users, columns]).to(self._head.device)
        scores = scores[self._on_device(row)] + gains
        if not bool(torch.isfinite(scores).all()):
            raise ModelError(
                "the model gave a score that is not a finite number; its weights are broken, or "
                f"overflow in {self._head.dtype}: load it with dtype=torch.float32"
            )
        return _Candidates(users[row], columns[row], node, code, scores)

    def _score_codes(
        self, level: int, hidden: Tensor, row: Tensor, code: Tensor, normalize: Normalize
    ) -> Tensor:
        """The log-probability of each legal code after its beam, at most 0."""
        logits = self._head.level_logits(level, hidden)
        gains = logits[code, row]
        if normalize == "vocab":
            total = self._head.log_sum_exp(hidden)
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


def _check_levels(trie: Trie, level_token_ids: Sequence[IndexArray]) -> None:
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

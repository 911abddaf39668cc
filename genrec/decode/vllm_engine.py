"""The vLLM engine: the constrained search over an offline `vllm.LLM`, its public interface only.

Owns how requests for one token each reach vLLM and what comes back: every live beam of all users
is a request, and prefix caching lets a user's beams share the prompt. The search itself is the one
that every engine drives. Knows neither items' names nor where the model and the trie came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import PLAIN, ItemFilter, Search
from genrec.decode.request import Request, check_request
from genrec.decode.search import join_batches
from genrec.decode.trie import Trie
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_probe import check_probe, write_probe
from genrec.decode.vllm_steps import (
    Answer,
    StepRequest,
    join_answers,
    list_params,
    list_probe_params,
    list_whole_params,
)
from genrec.errors import DataError, ModelError, join_problems
from genrec.recipe import suggest_name
from genrec.types import IndexArray, RankedItems


class VllmEngine:
    """Ranks a catalogue's items after a prompt in a running vLLM; meets `engine.Engine`.

    On the same weights in float32 it gives the items and the order of `TorchEngine`.

    Attributes:
        llm: the vLLM.
    """

    def __init__(
        self,
        llm: Any,
        trie: Trie,
        level_token_ids: Sequence[IndexArray],
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Check that engine, trie and tokens belong together, and ask it for what is forbidden.

        Args:
            llm: a `vllm.LLM`, best from `vllm_open.open_vllm`. With `logprobs_mode` of
                "processed_logits" it must have genrec's logits processor; else it is asked for
                listed tokens, at most 128 a request.
            trie: the legal code sequences; answers are its item_index.
            level_token_ids: for each level the token id of code 0, 1, 2 and so on.
            adapters: LoRA directories by the names that requests say.

        Raises:
            ModelError: tokens that do not fit, or an engine that gives what the trie forbids.
        """
        self.llm = llm
        config = llm.model_config
        self._items = VllmItems(trie, level_token_ids, config.get_vocab_size())
        self._adapters = {name: Path(path) for name, path in (adapters or {}).items()}
        self._has_plugin = config.logprobs_mode == "processed_logits"
        self._check_settings()
        self.check_forbidden()

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return self._items.n_items

    @property
    def trie(self) -> Trie:
        """The legal code sequences."""
        return self._items.trie

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that a prompt may be answered with."""
        return tuple(self._adapters)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        return self._items.codebook_sizes

    @property
    def block_tokens(self) -> int:
        """How many tokens the prefix cache keeps together.

        A prompt of a whole number of blocks is read once; of any other, every beam reads the rest
        anew (see `align`).
        """
        return int(self._cache_config.block_size)

    @property
    def _cache_config(self) -> Any:
        return self.llm.llm_engine.vllm_config.cache_config

    def replace_trie(self, trie: Trie) -> VllmEngine:
        """An engine for other items over the same vLLM, which is shared; this one goes on.

        Raises:
            ModelError: codes that there is no token for.
        """
        other = copy.copy(self)
        other._items = self._items.replace_trie(trie)
        return other

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt, as `Engine` describes.

        Args:
            prompts: as for `Engine`.
            k: as for `Engine`.
            search: as for `Engine`.
            filters: as for `Engine`.
            adapters: for each prompt the adapter it is answered with, or None for the model as it
                was loaded; without the list none is used.
        """
        limits = self._items.limit(self.llm.model_config.max_model_len)
        request = check_request(limits, prompts, k, search, filters)
        named = self._check_adapters(adapters, len(prompts))
        parts = [
            (
                users,
                self._items.search(request.select(users), [named[u] for u in users], self._score),
            )
            for users in self._split_batches(request)
        ]
        return join_batches(parts, len(prompts), k)

    def _check_adapters(
        self, adapters: Sequence[str | None] | None, n_prompts: int
    ) -> Sequence[str | None]:
        if adapters is None:
            return [None] * n_prompts
        if len(adapters) != n_prompts:
            raise DataError(f"{len(adapters)} adapters for {n_prompts} prompts; give one a prompt")
        problems = [
            f"prompt {row} asks for {name!r}; {suggest_name(name, self._adapters)}"
            for row, name in enumerate(adapters)
            if name is not None and name not in self._adapters
        ]
        if problems:
            raise ModelError(join_problems("unknown adapters", problems))
        return adapters

    def _split_batches(self, request: Request) -> Iterator[list[int]]:
        """Rows of the request whose prompts stay in the prefix cache from level to level."""
        block = self.block_tokens
        # Half for the prompts: what beams add on the way may push out nothing else.
        room = (self._cache_config.num_gpu_blocks or 0) * block // 2
        batch: list[int] = []
        taken = 0
        for user, prompt in enumerate(request.prompts):
            n_tokens = (len(prompt) // block + 1) * block
            if batch and taken + n_tokens > room:
                yield batch
                batch, taken = [], 0
            batch.append(user)
            taken += n_tokens
        if batch:
            yield batch

    def _score(self, requests: Sequence[StepRequest]) -> list[NDArray[np.float64]]:
        """For each request the log-probabilities of its wanted tokens."""
        asked = [list_params(request, self._has_plugin) for request in requests]
        owners = [r for r, own in zip(requests, asked, strict=True) for _ in own]
        answers = iter(self._generate(owners, [params for own in asked for params in own]))
        return [
            join_answers(request, list(islice(answers, len(own))), self._has_plugin)
            for request, own in zip(requests, asked, strict=True)
        ]

    def _generate(
        self, requests: Sequence[StepRequest], params: Sequence[Mapping[str, Any]]
    ) -> list[Answer]:
        """What vLLM says to each request.

        Those with an adapter and those without go into it one after the other: on CPU vLLM 0.32
        gives the latter the adapter of the former where they meet in a batch, and keeps what it
        computed so in its prefix cache.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        numbers = {name: number for number, name in enumerate(self._adapters, start=1)}
        answers: list[Answer] = [Answer((), ())] * len(requests)
        for with_adapter in (False, True):
            rows = [
                r for r, one in enumerate(requests) if (one.adapter is not None) == with_adapter
            ]
            if not rows:
                continue
            chosen = [
                LoRARequest(name, numbers[name], str(self._adapters[name]))
                for name in (requests[row].adapter for row in rows)
                if name is not None
            ]
            outputs = self.llm.generate(
                [{"prompt_token_ids": requests[row].prompt_token_ids} for row in rows],
                [
                    SamplingParams(**params[row], output_kind=RequestOutputKind.FINAL_ONLY)
                    for row in rows
                ],
                lora_request=chosen or None,
                use_tqdm=False,
            )
            for row, output in zip(rows, outputs, strict=True):
                said = output.outputs[0].logprobs
                answers[row] = Answer(said.token_ids, said.logprobs)
        return answers

    def check_forbidden(self) -> None:
        """Ask for what the trie forbids; an engine that gives it does not go live.

        Raises:
            ModelError: an illegal token, or scores that are not the model's own.
        """
        requests = write_probe(self._items.trie, self._items.token_ids)
        whole = self._generate(requests, [list_whole_params() for _ in requests])
        found: list[Answer] = []
        if self._has_plugin:
            found = self._generate(requests, [list_probe_params(r) for r in requests])
        else:
            scores = self._score(requests)
            found = [
                Answer(r.wanted.tolist(), s.tolist()) for r, s in zip(requests, scores, strict=True)
            ]
        is_exact = str(self.llm.model_config.dtype).endswith("float32")
        check_probe(requests, found, whole, is_exact=is_exact)

    def _check_settings(self) -> None:
        most = self.llm.model_config.max_logprobs
        if most != -1 and most < self._items.vocabulary_size:
            raise ModelError(
                f"the vLLM engine gives at most max_logprobs={most} values a request; genrec needs "
                f"as many as there are children: open it with max_logprobs=-1, or with open_vllm()"
            )

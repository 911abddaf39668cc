"""A stock vLLM server as an engine: nothing of genrec runs in it, it is asked over HTTP.

Owns how the requests for one token each become posts to `/v1/completions`, what is tried again, and
what an answer must hold. Any server that takes prompts as token ids and `logprob_token_ids` will
do; vLLM 0.32 does. The search itself is the one that every engine drives.
"""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httpx2
import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import PLAIN, ItemFilter, Search
from genrec.decode.request import check_request
from genrec.decode.search import join_batches
from genrec.decode.trie import Trie
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_probe import write_probe
from genrec.decode.vllm_steps import (
    MAX_LISTED_TOKENS,
    Answer,
    StepRequest,
    find_answers,
    join_answers,
)
from genrec.errors import ModelError, join_problems
from genrec.recipe import suggest_name
from genrec.types import RankedItems

_PASSING = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""Answers that may be others a moment later."""
_SHOWN_CHARS = 300
_TOLERANCE = 1e-3
_PROMPTS_A_POST = 64
_USERS_AT_ONCE = 32
_LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM writes this for tokens that cannot be
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemotePace:
    """How a server is asked.

    Attributes:
        timeout_seconds: for one answer.
        tries: of one post, the first included.
        first_pause_seconds: before the second try; it doubles with each further one.
        posts_at_once: connections that are open at once.
    """

    timeout_seconds: float = 60.0
    tries: int = 5
    first_pause_seconds: float = 0.5
    posts_at_once: int = 8


@dataclass(slots=True)
class _Post:
    """Prefixes that one post asks about, and the tokens that it names, at most 128."""

    adapter: str | None
    tokens: set[int]
    places: list[tuple[int, int]]
    prompts: list[list[int]]


class RemoteEngine:
    """Ranks a catalogue's items in a vLLM server; meets `engine.Engine`.

    Scores are the raw log-probabilities that the server gives: on the same weights in float32 the
    items and the order of `TorchEngine`.
    """

    def __init__(
        self,
        url: str,
        items: VllmItems,
        model: str | None = None,
        *,
        api_key: str | None = None,
        pace: RemotePace = RemotePace(),
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Ask the server for its models, and check that it gives the model's own scores.

        Args:
            url: of the server, with or without `/v1`.
            items: what is searched for.
            model: the name by which the server knows the model; None takes its first. Its other
                names are adapters that `rank_prompts` may be told.
            api_key: what the server asks for.
            pace: timeouts and tries.
            transport: how posts travel; None is the network.

        Raises:
            ModelError: no such server or model, or answers that cannot be used.
        """
        self._items = items
        self._pace = pace
        self._url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx2.Client(
            base_url=self._url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=pace.timeout_seconds,
            limits=httpx2.Limits(max_connections=pace.posts_at_once),
            transport=transport,
        )
        self._pool = ThreadPoolExecutor(pace.posts_at_once, thread_name_prefix="genrec-remote")
        with ExitStack() as undo:
            undo.callback(self.close)
            self._model, self._adapters, longest = self._choose_model(model)
            self._limits = items.limit(longest)
            self._max_tokens = longest
            self._check_scores()
            undo.pop_all()

    @property
    def n_items(self) -> int:
        """How many items the catalogue holds."""
        return self._items.n_items

    @property
    def trie(self) -> Trie:
        """The legal code sequences."""
        return self._items.trie

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has a token for."""
        return self._items.codebook_sizes

    @property
    def block_tokens(self) -> int | None:
        """What is known of the server's prefix cache (`VllmItems.block_tokens`)."""
        return self._items.block_tokens

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that the server has over the model."""
        return self._adapters

    def close(self) -> None:
        """Close the connections; the engine cannot be used any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def replace_trie(self, trie: Trie) -> Self:
        """An engine for other items of the same server, with which it shares connections.

        Raises:
            ModelError: codes that there is no token for.
        """
        other = copy.copy(self)
        other._items = self._items.replace_trie(trie)
        other._limits = other._items.limit(self._max_tokens)
        return other

    def rank_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        search: Search = PLAIN,
        *,
        filters: Sequence[ItemFilter] | None = None,
        adapter: str | None = None,
    ) -> RankedItems:
        """Rank the k items that the model likes best after each prompt, as `Engine` describes.

        Args:
            prompts: as for `Engine`.
            k: as for `Engine`.
            search: as for `Engine`.
            filters: as for `Engine`.
            adapter: answers all of them; None is the model itself. A server on CPU must not get
                both kinds at once, from whichever clients (see docs/vllm.md).

        Raises:
            ModelError: besides what `Engine` says, a server that does not answer.
        """
        request = check_request(self._limits, prompts, k, search, filters)
        if adapter is not None and adapter not in self._adapters:
            raise ModelError(
                f"unknown adapter {adapter!r}; {suggest_name(adapter, self._adapters)}"
            )
        rows = range(len(prompts))
        batches = [rows[at : at + _USERS_AT_ONCE] for at in rows[::_USERS_AT_ONCE]]
        parts = [
            (list(b), self._items.search(request.select(b), [adapter] * len(b), self._score))
            for b in batches
        ]
        return join_batches(parts, len(prompts), k)

    def _score(self, requests: Sequence[StepRequest]) -> list[NDArray[np.float64]]:
        """For each request the log-probabilities of its wanted tokens."""
        answers: list[list[Answer]] = [[] for _ in requests]
        posts = pack_posts(requests)
        for post, said in zip(posts, self._pool.map(self._send, posts), strict=True):
            for (row, _), answer in zip(post.places, said, strict=True):
                answers[row].append(answer)  # a request's parts come in their order
        return [
            join_answers(request, own, False)
            for request, own in zip(requests, answers, strict=True)
        ]

    def _send(self, post: _Post) -> list[Answer]:
        return self._complete(post.prompts, sorted(post.tokens), post.adapter)

    def _complete(
        self, prompts: list[list[int]], tokens: list[int], adapter: str | None, **more: Any
    ) -> list[Answer]:
        """What the server says of some tokens after each prompt."""
        body = {
            "model": adapter or self._model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 0,
            "logprob_token_ids": tokens,
            "return_tokens_as_token_ids": True,
            **more,
        }
        answer = self._ask("POST", "/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            found = [read_choice(choice) for choice in choices]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self._url} gave an answer without the log-probabilities of token ids "
                f"({type(error).__name__}: {error}); it must be a vLLM server, 0.32 or later"
            ) from error
        if len(found) != len(prompts):
            raise ModelError(
                f"{self._url} gave {len(found)} answers to {len(prompts)} prompts; it must be a "
                f"vLLM server, 0.32 or later"
            )
        return found

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A server's answer, after as many tries as it takes and the pace allows."""
        fault, least = "", 0.0
        for number in range(self._pace.tries):
            if number:
                _log.warning("%s%s: %s; trying again", self._url, path, fault)
                pause = self._pace.first_pause_seconds * 2 ** (number - 1)
                # Clients that were refused together shall not come back together.
                time.sleep(max(pause * random.uniform(0.5, 1.5), least))
            try:
                answer = self._client.request(method, path, json=body)
            except httpx2.TransportError as error:
                fault, least = f"no answer ({type(error).__name__}: {error})", 0.0
                continue
            if answer.is_success:
                try:
                    return answer.json()
                except ValueError as error:
                    raise ModelError(
                        f"{self._url}{path} gave something that is not JSON "
                        f"({answer.text[:_SHOWN_CHARS]!r}); is it a vLLM server?"
                    ) from error
            fault = f"HTTP {answer.status_code}: {answer.text[:_SHOWN_CHARS]}"
            least = min(_read_wait(answer), self._pace.timeout_seconds)
            if answer.status_code not in _PASSING:
                raise ModelError(
                    f"{self._url}{path} refused a request ({fault}); start it with a model that "
                    f"genrec trained, and give the key that it asks for"
                )
        raise ModelError(
            f"{self._url}{path} did not answer in {self._pace.tries} tries, the last with {fault}; "
            f"see whether the server is up and not overloaded"
        )

    def _choose_model(self, wanted: str | None) -> tuple[str, tuple[str, ...], int]:
        """The model's name, those of its adapters, and how many tokens it reads."""
        listed = self._ask("GET", "/v1/models")
        try:
            models = {str(entry["id"]): entry for entry in listed["data"]}
            bases = [name for name, entry in models.items() if not entry.get("parent")]
            name = wanted or bases[0]
            if name not in models:
                raise ModelError(f"{self._url} has no model {name!r}; {suggest_name(name, models)}")
            longest = models[name].get("max_model_len") or models[bases[0]]["max_model_len"]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f"{self._url}/v1/models lists no model with its max_model_len "
                f"({type(error).__name__}: {error}); it must be a vLLM server"
            ) from error
        return name, tuple(n for n in models if n not in bases and n != name), int(longest)

    def _check_scores(self) -> None:
        """Refuse a server whose log-probabilities are not the model's own over all tokens.

        Those that it gives for sampling change with what may be sampled; the model's do not.
        """
        problems = []
        for request in write_probe(self._items.trie, self._items.token_ids)[::2]:
            tokens = request.wanted[:MAX_LISTED_TOKENS].tolist()
            prompts = [request.prompt_token_ids]
            (free,) = self._complete(prompts, tokens, None)
            (bound,) = self._complete(prompts, tokens, None, allowed_token_ids=tokens[:1])
            scores = find_answers(tokens, free)
            if scores.max() > 0 or np.logaddexp.reduce(scores) > _TOLERANCE:
                problems.append(f"{len(tokens)} tokens have log-probabilities up to {scores.max()}")
            elif np.abs(find_answers(tokens, bound) - scores).max() > _TOLERANCE:
                problems.append("log-probabilities change with the tokens that may be sampled")
        if problems:
            raise ModelError(
                join_problems(
                    f"{self._url} gives values that are not the model's log-probabilities; start "
                    f"the server with --logprobs-mode raw_logprobs",
                    problems,
                )
            )


def pack_posts(requests: Sequence[StepRequest]) -> list[_Post]:
    """Few posts that ask for everything; each names at most 128 tokens for all its prompts.

    A post costs a server some milliseconds, a token more in each of its answers some microseconds.
    """
    posts: list[_Post] = []
    for row, request in enumerate(requests):
        for part, tokens in enumerate(request.list_parts()):
            last = posts[-1] if posts else None
            if (
                last is None
                or last.adapter != request.adapter
                or len(last.prompts) == _PROMPTS_A_POST
                or len(last.tokens | set(tokens)) > MAX_LISTED_TOKENS
            ):
                last = _Post(request.adapter, set(), [], [])
                posts.append(last)
            last.tokens |= set(tokens)
            last.places.append((row, part))
            last.prompts.append(request.prompt_token_ids)
    return posts


def read_choice(choice: Mapping[str, Any]) -> Answer:
    """The tokens and log-probabilities of one completion of one token.

    Raises:
        ValueError: tokens that are no ids.
        KeyError, IndexError, TypeError: it is no such completion.
    """
    said = choice["logprobs"]["top_logprobs"][0]
    tokens = [int(name.removeprefix("token_id:")) for name in said]
    values = [float(value) for value in said.values()]
    if any(not np.isfinite(value) for value in values):
        raise ValueError("a log-probability is not finite")
    return Answer(tokens, [-np.inf if value <= _LEAST_LOGPROB else value for value in values])


def _read_wait(answer: httpx2.Response) -> float:
    """How long a server asks its clients to wait; 0 where it says nothing of it in seconds."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else 0.0

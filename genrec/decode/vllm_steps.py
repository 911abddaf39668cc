"""The search's questions as requests for one token each, and their answers as scores.

Owns the way between a `Question` and what a vLLM engine is asked: the tokens it reads, those whose
log-probability is wanted, and what a probability is relative to. Pure: the offline engine, the
asynchronous one and a plain server all send what is written here. Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from genrec.decode.engine import Normalize
from genrec.decode.search import Question
from genrec.errors import ModelError
from genrec.types import IndexArray

MAX_LISTED_TOKENS = 128
"""How many tokens a request without our plugin may name (vLLM 0.32, `logprob_token_ids`)."""

PLUGIN_TOKENS = "genrec_tokens"
PLUGIN_OVER = "genrec_over"

# No text is made of what is sampled, and log-probabilities come as flat lists: both save time.
_ONE_TOKEN = {
    "temperature": 0.0,
    "max_tokens": 1,
    "detokenize": False,
    "flat_logprobs": True,
    "skip_clone": True,  # nobody else holds these parameters
}


class Answer(NamedTuple):
    """What an engine said of one request: a value for each of some tokens, in its own order."""

    token_ids: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, eq=False)
class StepRequest:
    """One prefix of one user: the model reads it, and says how likely each next token is.

    Attributes:
        prompt_token_ids: the user's prompt and the prefix's code tokens.
        wanted: the tokens whose log-probability is wanted, each once.
        over: what a probability is relative to, a set of tokens that holds all that are wanted;
            None is the whole vocabulary.
        adapter: by name; None is the model as it was loaded.
    """

    prompt_token_ids: list[int]
    wanted: IndexArray
    over: IndexArray | None = None
    adapter: str | None = None

    @property
    def extra_args(self) -> dict[str, bytes]:
        """What our logits processor is told, as `SamplingParams(extra_args=...)`."""
        args = {PLUGIN_TOKENS: pack_tokens(self.wanted)}
        if self.over is not None:
            args[PLUGIN_OVER] = pack_tokens(self.over)
        return args

    @property
    def asked(self) -> IndexArray:
        """The tokens that an engine without our plugin is asked about."""
        return self.wanted if self.over is None else self.over

    def list_parts(self) -> list[list[int]]:
        """`asked` in lists that are short enough for a request without our plugin."""
        tokens: list[int] = self.asked.tolist()
        return [
            tokens[start : start + MAX_LISTED_TOKENS]
            for start in range(0, len(tokens), MAX_LISTED_TOKENS)
        ]

    def relate(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log-probability of each wanted token, from the raw ones of each asked token.

        Raises:
            ModelError: the asked tokens together have no probability that a float can hold.
        """
        if self.over is None:
            return raw
        total = np.logaddexp.reduce(raw)
        if not np.isfinite(total):
            raise ModelError(
                f"the {len(raw)} tokens that one step chooses from have a total log-probability of "
                f"{total}; it must be finite: the weights are broken, or overflow in half "
                f"precision, so load the model in float32"
            )
        order = np.argsort(self.over)
        found = order[np.searchsorted(self.over, self.wanted, sorter=order)]
        related: NDArray[np.float64] = raw[found] - total
        return related


class StepWriter:
    """Writes the requests of one dialogue with `search_items`, and reads their answers."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int] | IndexArray],
        level_token_ids: Sequence[IndexArray],
        normalize: Normalize,
        adapters: Sequence[str | None] | None = None,
    ) -> None:
        """Begin a dialogue about some users.

        Args:
            prompts: U token id sequences.
            level_token_ids: for each level the token id of code 0, 1, 2 and so on.
            normalize: as for `Search`.
            adapters: for each prompt the adapter it is answered with; None uses none.
        """
        self._prompts = [np.asarray(prompt, dtype=np.int64).tolist() for prompt in prompts]
        self._level_token_ids = level_token_ids
        self._normalize = normalize
        self._adapters = adapters or [None] * len(prompts)
        # By user, then by number: the code tokens of every prefix that was asked about.
        self._prefixes: list[list[tuple[int, ...]]] = [[] for _ in prompts]

    def write_requests(self, question: Question) -> list[StepRequest]:
        """A request for each prefix that has legal children, users in order, then columns."""
        self._number_prefixes(question)
        first_number = len(self._prefixes[0]) - question.nodes.shape[1]
        tokens = self._level_token_ids[question.level]
        requests = []
        for children in _group_children(question):
            user, column = int(question.user_row[children[0]]), int(question.column[children[0]])
            wanted = tokens[question.code[children]]
            over = {"vocab": None, "level": tokens, "child": wanted}[self._normalize]
            prefix = self._prefixes[user][first_number + column]
            requests.append(
                StepRequest([*self._prompts[user], *prefix], wanted, over, self._adapters[user])
            )
        return requests

    def read_gains(self, question: Question, answers: Sequence[ArrayLike]) -> Tensor:
        """The (C,) float32 log-probability of each child after its prefix, at most 0.

        Args:
            question: the one that the requests were written for.
            answers: for each request the log-probabilities of its wanted tokens.
        """
        gains = np.empty(len(question.code), dtype=np.float32)
        for children, answer in zip(_group_children(question), answers, strict=True):
            gains[children] = answer
        # Rounding can lift a near-certain code above 0, which would break the certificate's bound.
        return torch.from_numpy(np.minimum(gains, np.float32(0)))

    def _number_prefixes(self, question: Question) -> None:
        if question.level == 0:
            for numbered in self._prefixes:
                numbered.append(())
            return
        tokens = self._level_token_ids[question.level - 1][question.codes].tolist()
        parents = question.parents.tolist()
        for numbered, user_tokens, user_parents in zip(
            self._prefixes, tokens, parents, strict=True
        ):
            numbered.extend(
                [
                    (*numbered[parent], token)
                    for parent, token in zip(user_parents, user_tokens, strict=True)
                ]
            )


def _group_children(question: Question) -> list[IndexArray]:
    """The places of each prefix's children among all, prefix by prefix; none for one without."""
    key = question.user_row * question.nodes.shape[1] + question.column
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def find_answers(wanted: Sequence[int] | IndexArray, answer: Answer) -> NDArray[np.float64]:
    """The value of each wanted token in what an engine gave back, which may hold more.

    Raises:
        ModelError: a wanted token is not among them.
    """
    tokens = np.asarray(wanted, dtype=np.int64)
    given = np.asarray(answer.token_ids, dtype=np.int64)
    order = np.argsort(given, kind="stable")
    place = np.searchsorted(given, tokens, sorter=order)
    found = order[np.minimum(place, len(given) - 1)] if len(given) else order
    missing = tokens[given[found] != tokens] if len(given) else tokens
    if len(missing):
        raise ModelError(
            f"the engine gave no log-probability for {len(missing)} of {len(tokens)} tokens, such "
            f"as {missing[0]}; every token that is asked about must come back: open the engine "
            f"with open_vllm(), or load genrec's logits processor into it"
        )
    answers: NDArray[np.float64] = np.asarray(answer.values, dtype=np.float64)[found]
    return answers


def pack_tokens(tokens: IndexArray) -> bytes:
    """Token ids as bytes, which cross into the engine's process faster than a list does."""
    return np.asarray(tokens, dtype="<i4").tobytes()


def unpack_tokens(packed: bytes) -> NDArray[np.int64]:
    """The token ids that `pack_tokens` was given."""
    return np.frombuffer(packed, dtype="<i4").astype(np.int64)


def list_plugin_params(request: StepRequest) -> dict[str, Any]:
    """The sampling parameters of a request to an engine that has our logits processor."""
    return _ONE_TOKEN | {"logprobs": len(request.wanted), "extra_args": request.extra_args}


def list_probe_params(request: StepRequest) -> dict[str, Any]:
    """As `list_plugin_params`, for one token more than is legal.

    Were anything else possible, it would come back.
    """
    return list_plugin_params(request) | {"logprobs": len(request.wanted) + 1}


def list_whole_params() -> dict[str, Any]:
    """The sampling parameters that ask for the value of every token, unconstrained."""
    return _ONE_TOKEN | {"logprobs": -1}


def list_plain_params(tokens: list[int]) -> dict[str, Any]:
    """The sampling parameters that name some tokens (one of `StepRequest.list_parts`)."""
    return _ONE_TOKEN | {"logprob_token_ids": tokens}


def list_params(request: StepRequest, has_plugin: bool) -> list[dict[str, Any]]:
    """The sampling parameters of all that an engine is asked about one prefix."""
    if has_plugin:
        return [list_plugin_params(request)]
    return [list_plain_params(tokens) for tokens in request.list_parts()]


def join_answers(
    request: StepRequest, answers: Sequence[Answer], has_plugin: bool
) -> NDArray[np.float64]:
    """The log-probability of each wanted token, from the answers to `list_params`."""
    if has_plugin:
        (answer,) = answers
        return find_answers(request.wanted, answer)
    parts = zip(request.list_parts(), answers, strict=True)
    return request.relate(np.concatenate([find_answers(*part) for part in parts]))

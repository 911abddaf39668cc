"""The check, before a vLLM engine goes live, that it gives only what the trie allows.

Owns what is asked and what counts as wrong: a logits processor that is not loaded, is ignored, or
scores otherwise than the model does. Pure, like the requests that it writes. Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.decode.trie import Trie
from genrec.decode.vllm_steps import Answer, StepRequest, find_answers
from genrec.errors import ModelError
from genrec.types import IndexArray

_TOLERANCE = 1e-3
# One batch's rounding in half precision against another's.
_HALF_PRECISION_TOLERANCE = 0.25


def write_probe(trie: Trie, level_token_ids: Sequence[IndexArray]) -> list[StepRequest]:
    """Requests for the children of an item's prefixes, relative to all tokens and to a level's."""
    requests = []
    node = np.zeros(1, dtype=np.int64)
    seen = [int(level_token_ids[0][0])]  # a prompt of one token, whichever: any has forbidden ones
    for level, tokens in enumerate(level_token_ids):
        children = trie.expand(level, node)
        wanted = tokens[children.code]
        requests += [StepRequest(list(seen), wanted, over) for over in (None, tokens)]
        node = children.node[:1]
        seen.append(int(wanted[0]))
    return requests


def check_probe(
    requests: Sequence[StepRequest],
    found: Sequence[Answer],
    whole: Sequence[Answer],
    *,
    is_exact: bool,
) -> None:
    """Refuse an engine whose answers are illegal, or are not the model's own.

    Args:
        requests: those of `write_probe`.
        found: for each the log-probabilities that the engine gave; -inf says impossible.
        whole: for each the values of the whole vocabulary, asked without any constraint; raw logits
            and log-probabilities will both do.
        is_exact: whether the engine computes in float32.

    Raises:
        ModelError: the first answer that is wrong.
    """
    tolerance = _TOLERANCE if is_exact else _HALF_PRECISION_TOLERANCE
    for request, answer, every in zip(requests, found, whole, strict=True):
        values = np.asarray(answer.values, dtype=np.float64)
        possible = np.asarray(answer.token_ids, dtype=np.int64)[values > -np.inf]
        forbidden = possible[~np.isin(possible, request.wanted)]
        if len(forbidden):
            raise ModelError(
                f"after {request.prompt_token_ids} the vLLM engine gave token {forbidden[0]}, "
                f"which the catalogue forbids: {len(request.wanted)} are legal there. Our logits "
                f"processor is not loaded or is ignored; start the engine with "
                f"open_vllm(), or with logits_processors=['genrec.decode.vllm_plugin:NodeScores']"
            )
        raw = find_answers(request.asked, every)
        raw -= np.logaddexp.reduce(np.asarray(every.values, dtype=np.float64)[_first_of(every)])
        gap = np.abs(find_answers(request.wanted, answer) - request.relate(raw)).max()
        if not gap <= tolerance:
            raise ModelError(
                f"after {request.prompt_token_ids} the vLLM engine's scores of legal tokens differ "
                f"by {gap:.3g} from the model's own; at most {tolerance:g} is rounding. Something "
                f"else changes its logits: start it without other logits processors, speculative "
                f"decoding or generation defaults"
            )


def _first_of(answer: Answer) -> IndexArray:
    """Where each token is given first: engines repeat the sampled one."""
    return np.unique(np.asarray(answer.token_ids, dtype=np.int64), return_index=True)[1]

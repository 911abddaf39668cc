"""genrec's logits processor: of the tokens that a request names, exact log-probabilities.

Owns what happens inside vLLM's sampler. A request says in its `extra_args` which tokens are wanted
(a trie node's legal children) and what they are relative to; their logits become log-probabilities
and all others -inf, so nothing else can be sampled, and `logprobs_mode="processed_logits"` gives
them back as they are. Knows no trie and no search.

vLLM 0.32 has two model runners with an interface each; the class `NodeScores` of this module meets
both, so that one name serves whichever runner vLLM chooses:

    LLM(..., logits_processors=["genrec.decode.vllm_plugin:NodeScores"],
        logprobs_mode="processed_logits")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genrec.decode.vllm_steps import PLUGIN_OVER, PLUGIN_TOKENS, unpack_tokens

PLUGIN_NAME = f"{__name__}:NodeScores"


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What one request asks: see `vllm_steps.StepRequest`."""

    tokens: Tensor
    over: Tensor | None


class NodeScoresBody:
    """All of `NodeScores` but its parents, which exist only where vLLM is installed."""

    def __init__(self, *settings: Any) -> None:
        """Begin with no request; what either runner passes (its settings) is not needed."""
        # By row of the batch in the older runner, by persistent slot in the newer one.
        self._wanted: dict[int, _Wanted] = {}

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Refuse arguments of ours that cannot be read, before the request is queued.

        Raises:
            ValueError: which vLLM hands to whoever sent the request.
        """
        _read_wanted(params)

    def is_argmax_invariant(self) -> bool:
        """False: the likeliest token may be one that is not legal."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Older runner: follow requests that leave, enter and change rows, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._wanted.pop(row, None)
        for row, params, *_ in batch_update.added:
            self.add_request(row, params)
        for source, target, direction in batch_update.moved:
            moved, other = self._wanted.pop(source, None), self._wanted.pop(target, None)
            if moved is not None:
                self._wanted[target] = moved
            if other is not None and direction.name == "SWAP":
                self._wanted[source] = other

    def add_request(self, place: int, params: Any) -> bool:
        """Newer runner: whether this request, new in a slot, wants anything of us."""
        wanted = _read_wanted(params)
        self._wanted.pop(place, None)
        if wanted is not None:
            self._wanted[place] = wanted
        return wanted is not None

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Write the log-probabilities; the context comes from the newer runner only."""
        if not self._wanted:
            return logits
        places = range(len(logits)) if context is None else _find_slots(logits, context)
        rows = [row for row, place in enumerate(places) if place in self._wanted]
        if rows:
            write_scores(logits, rows, [self._wanted[places[row]] for row in rows])
        return logits


def write_scores(logits: Tensor, rows: Sequence[int], wanted: Sequence[_Wanted]) -> None:
    """Replace some rows by log-probabilities of wanted tokens, -inf elsewhere.

    Shapes:
        logits: (rows of the batch, V), changed in place; the same sums on every run.
    """
    row = torch.tensor(rows, device=logits.device)[:, None]
    table, tokens = _pick_values(logits, row, [one.tokens for one in wanted])
    totals = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
    whole = [place for place, one in enumerate(wanted) if one.over is None]
    if whole:
        totals[whole] = torch.logsumexp(logits[row[whole, 0]].float(), dim=1)
    partly = [place for place, one in enumerate(wanted) if one.over is not None]
    if partly:
        over = [one.over for one in wanted if one.over is not None]
        totals[partly] = torch.logsumexp(_pick_values(logits, row[partly], over)[0], dim=1)
    logits[row[:, 0]] = -torch.inf
    # Padding repeats a row's first token, with the same value: written twice, it is the same.
    logits[row, tokens] = (table.where(table > -torch.inf, table[:, :1]) - totals[:, None]).to(
        logits.dtype
    )


def _pick_values(logits: Tensor, row: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each row's values at its tokens as a padded table, and the tokens.

    Shapes:
        both: (n, most tokens); padding is -inf in the values, the row's first token in the tokens.
    """
    padded = pad_sequence(list(tokens), batch_first=True, padding_value=-1)
    padded = padded.to(logits.device, non_blocking=True)
    absent = padded < 0
    padded = padded.where(~absent, padded[:, :1])
    return logits[row, padded].float().masked_fill(absent, -torch.inf), padded


def _find_slots(logits: Tensor, context: Any) -> list[int]:
    """The slot of each row; on the host already, but where drafts give a request several rows."""
    slots = context.idx_mapping_np
    found: list[int] = (
        slots if len(slots) == len(logits) else context.expanded_idx_mapping
    ).tolist()
    return found


def _read_wanted(params: Any) -> _Wanted | None:
    args = params.extra_args or {}
    if PLUGIN_TOKENS not in args:
        return None
    found = {}
    for name in (PLUGIN_TOKENS, PLUGIN_OVER):
        packed = args.get(name)
        if packed is None and name == PLUGIN_OVER:
            continue
        if not isinstance(packed, bytes) or not packed or len(packed) % 4:
            raise ValueError(
                f"extra_args[{name!r}] is {type(packed).__name__} {str(packed)[:40]!r}; it must be "
                f"one or more 32-bit token ids as bytes: make it with "
                f"genrec.decode.vllm_steps.pack_tokens"
            )
        found[name] = torch.from_numpy(unpack_tokens(packed))
    return _Wanted(found[PLUGIN_TOKENS], found.get(PLUGIN_OVER))


def __getattr__(name: str) -> Any:
    """`NodeScores`, made when vLLM first asks for it: its parents are vLLM's own classes."""
    if name != "NodeScores":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.v1.sample.logits_processor import LogitsProcessor as BatchProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotProcessor

    made = type(name, (NodeScoresBody, BatchProcessor, SlotProcessor), {"__module__": __name__})
    return globals().setdefault(name, made)

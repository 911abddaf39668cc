"""Attention over rows that lie end to end in one line, each attending to itself only.

Owns the attention that costs the sum of the rows' squared lengths instead of the square of their
sum, and the test of whether a model computes with it what it computes for single rows. Knows
nothing of training.

transformers has the same as padding-free batches, but only for its FlashAttention kernels; with
SDPA it makes a block mask of T x T, which every layer then reads. Rows of like length padded on the
right need no mask at all under causal attention, so that SDPA's fast kernels take them as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from genrec.decode.soft_users import ignore_marks
from genrec.train.batches import ABOUT, RowGroups, lay_rows
from genrec.train.rows import EncodedRow, EncodedRows

ATTENTION = "genrec_packed"
_PROBE_ROWS, _PROBE_TOKENS = 4, 48
# The root mean square difference allowed between packed and single rows, as a share of the logits'
# spread: float32 rounds by some 1e-7 of it and half precision by up to one percent.
_TOLERANCE, _HALF_TOLERANCE = 1e-5, 0.04
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_log = logging.getLogger(__name__)


def attend_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    row_groups: RowGroups | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, for transformers' AttentionInterface.

    Args:
        module: the attention layer.
        query: of all tokens.
        key: of all tokens.
        value: of all tokens.
        attention_mask: for batches that are not packed; has nothing to say otherwise.
        sliding_window: how far back a token sees, where the layer has a limit.
        row_groups: as `batches.group_rows` makes them; None is an ordinary batch.
        settings: scaling, dropout and whatever else the model passes to SDPA.

    Shapes:
        query: (1, heads, T, D); key, value: (1, key-value heads, T, D); returns (1, T, heads, D).
    """
    if row_groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    parts, start = [], 0
    for n_rows, width, places in row_groups:
        stop = start + (n_rows * width if places is None else len(places))
        padded_query, padded_key, padded_value = (
            _pad_rows(states[0, :, start:stop], n_rows, width, places)
            for states in (query, key, value)
        )
        mask = None
        if sliding_window is not None and width > sliding_window:
            mask = _see_window(width, sliding_window, query.device)
        found, _ = sdpa_attention_forward(
            module, padded_query, padded_key, padded_value, mask, **settings
        )
        flat = found.flatten(0, 1)
        parts.append(flat if places is None else flat.index_select(0, places))
        start = stop
    return torch.cat(parts)[None], None


def _pad_rows(
    states: torch.Tensor, n_rows: int, width: int, places: torch.Tensor | None
) -> torch.Tensor:
    """(heads, tokens, D) to (rows, heads, width, D), zeros on the right."""
    lines = states.transpose(0, 1)
    if places is not None:
        lines = lines.new_zeros(n_rows * width, *lines.shape[1:]).index_copy(0, places, lines)
    return lines.view(n_rows, width, *lines.shape[1:]).transpose(1, 2)


def _see_window(width: int, window: int, device: torch.device) -> torch.Tensor:
    place = torch.arange(width, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]


@contextmanager
def pack_attention(model: Any, rows: EncodedRows) -> Iterator[bool]:
    """Whether packed batches may be fed to `model`; inside, its attention understands them.

    Decided by comparing: a few of the rows packed against each of them alone, long enough to reach
    beyond a window that the attention has. Afterwards the model has its own attention again.

    Args:
        model: any decoder-only model, adapters included; not wrapped for several processes yet.
        rows: the rows that will be trained on.
    """
    AttentionInterface.register(ATTENTION, attend_rows)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.config._attn_implementation
    was_training = model.training
    try:
        model.eval()
        with ignore_marks(model):
            fits = _try_packing(model, base, _choose_probe(base, rows))
        model.train(was_training)
        if not fits:
            _log.info(
                "train: %s does not give packed rows the logits of single ones; batches are padded",
                type(base).__name__,
            )
            base.set_attn_implementation(own)
        yield fits
    finally:
        base.set_attn_implementation(own)


def _choose_probe(base: Any, rows: EncodedRows) -> list[EncodedRow]:
    """Rows from short to long, their beginnings cut off where a piece tells as much."""
    config = base.config.get_text_config()
    reach = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    longest = int(rows.lengths.max())
    most = max([_PROBE_TOKENS, *(span + 16 for span in reach if span and span < longest)])
    by_length = np.argsort(rows.lengths, kind="stable")
    chosen = by_length[np.linspace(0, len(rows) - 1, _PROBE_ROWS).round().astype(np.int64)]
    return [
        EncodedRow(row.input_ids[-most:], max(row.n_prompt - max(len(row.input_ids) - most, 0), 1))
        for row in (rows[int(number)] for number in chosen)
    ]


def _try_packing(model: Any, base: Any, probe: Sequence[EncodedRow]) -> bool:
    """Whether the model with `attend_rows`, which it then has, gives what it gave without."""
    parameters = list(model.parameters())
    kinds = getattr(base.config.get_text_config(), "layer_types", None)
    if not _ATTENTION_LAYERS.issuperset(kinds or ()):
        return False  # others carry a state from token to token, and so from row to row
    if any(parameter.is_meta or not parameter.numel() for parameter in parameters):
        # Split over processes before they are loaded: nothing can be computed here.
        base.set_attn_implementation(ATTENTION)
        return bool(base._supports_attention_backend)
    is_exact = all(parameter.dtype == torch.float32 for parameter in parameters)
    tolerance = _TOLERANCE if is_exact else _HALF_TOLERANCE
    device = parameters[0].device
    with torch.no_grad():
        alone = torch.cat([_run_alone(model, row, device) for row in probe])
        base.set_attn_implementation(ATTENTION)
        try:
            together = _run_packed(model, probe, device)
        except (TypeError, ValueError, RuntimeError) as error:
            _log.debug("packed rows fail: %s", error)
            return False
    difference = (alone - together).square().mean().sqrt()
    return bool(difference <= tolerance * alone.std())


def _run_alone(model: Any, row: EncodedRow, device: torch.device) -> torch.Tensor:
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None].to(device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, row.n_prompt - 1 : -1].float()


def _run_packed(model: Any, rows: Sequence[EncodedRow], device: torch.device) -> torch.Tensor:
    batch = send_to_device(lay_rows(rows), device)
    owners = batch.pop(ABOUT)["target_rows"][0]
    del batch["labels"]
    logits: torch.Tensor = model(**batch, use_cache=False).logits
    return logits[0].float()[owners.argsort(stable=True)]

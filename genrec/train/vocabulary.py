"""Semantic-ID tokens in a language model's vocabulary.

Owns how SID tokens enter the tokenizer and where their rows start. Knows nothing of adapters or of
how the rows are trained.

Source: LC-Rec and TIGER add the tokens with random rows; starting from the mean of the text they
encode is DESIGN.md's rule.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken

from genrec.errors import ModelError
from genrec.tokenizers.sid_text import format_token

_SID_TOKEN = re.compile(r"<[a-z]_\d+>")
_TEXT_TOKENS = 128
_ITEMS_A_CHUNK = 2048
_log = logging.getLogger(__name__)

LevelTokens = tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, slots=True)
class Extension:
    """SID tokens in a tokenizer.

    Shapes:
        token_ids: L arrays of (K,) int64, the token id of each code of a level.
    """

    token_ids: LevelTokens
    added: bool

    def flat_ids(self) -> list[int]:
        """All SID token ids, ascending."""
        return sorted(int(token) for level in self.token_ids for token in level)


def extend_vocabulary(
    model: Any,
    tokenizer: Any,
    codebook_sizes: Sequence[int],
    texts: Sequence[str],
    codes: NDArray[np.int32],
    *,
    noise: float,
    seed: int,
) -> Extension:
    """The SID tokens of every level and code, in tokenizer and model, unless they are all there.

    A new row of level l and code c is the mean, over the items with that code, of the mean row of
    their text, plus noise; codes that no item has start from the mean over all items. An untied
    head gets its rows the same way from its own matrix.

    Args:
        model: a decoder-only model; changed in place.
        tokenizer: its fast tokenizer; changed in place.
        codebook_sizes: K of each level.
        texts: N item texts.
        codes: item codes; row i is that of text i.
        noise: standard deviation of the noise, as a share of that of the text rows.
        seed: for the noise.

    Shapes:
        codes: (N, L) int32.

    Raises:
        ModelError: other SID tokens are there already, or the tokenizer splits ours.
    """
    # Encoded before the SID tokens exist: item text that spells one must not read its row.
    first_new = len(tokenizer)
    tokens, offsets = _encode_texts(tokenizer, texts)
    extension = extend_tokenizer(tokenizer, codebook_sizes)
    if not extension.added:
        _log.info("train: the base model has this vocabulary already; its token rows are kept")
        return extension
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        # Never shrinks: many checkpoints carry spare rows beyond their tokenizer.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        means = _average_texts(matrix[:first_new], tokens, offsets)
        spread = float(matrix[:first_new].detach().float().std()) * noise
        _start_rows(matrix, means, extension, codes, spread, generator)
    _log.info(
        "train: %d new token rows, %s head",
        len(extension.flat_ids()),
        "tied" if len(matrices) == 1 else "untied",
    )
    return extension


def extend_tokenizer(tokenizer: Any, codebook_sizes: Sequence[int]) -> Extension:
    """The SID tokens, added to `tokenizer` in place unless they are all there.

    They are ordinary added tokens: decoders skip special ones, and neither text normalisation nor
    neighbouring characters may change how they are read.

    Raises:
        ModelError: other SID tokens are there already, or the tokenizer splits ours.
    """
    levels = [
        [format_token(level, code) for code in range(size)]
        for level, size in enumerate(codebook_sizes)
    ]
    wanted = [token for level in levels for token in level]
    present = {token for token in tokenizer.get_added_vocab() if _SID_TOKEN.fullmatch(token)}
    if present and present != set(wanted):
        raise ModelError(
            f"the base model already has {len(present):,} semantic-ID tokens of another vocabulary "
            f"(this tokenizer artefact has {len(wanted):,}, {len(present & set(wanted)):,} of them "
            f"in common); start from the model before it was extended, or use the tokenizer "
            f"artefact it was extended with"
        )
    if not present:
        tokenizer.add_tokens([_plain_token(token) for token in wanted])
    token_ids = tuple(
        np.array(tokenizer.convert_tokens_to_ids(level), dtype=np.int64) for level in levels
    )
    _check_splits(tokenizer, levels, token_ids)
    return Extension(token_ids, added=not present)


def _plain_token(token: str) -> AddedToken:
    return AddedToken(
        token, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False
    )


def _check_splits(tokenizer: Any, levels: list[list[str]], token_ids: LevelTokens) -> None:
    """Encode every token, in runs as a prompt holds them, and look for the ids that went in."""
    width = max(len(level) for level in levels)
    padded = [[level[code % len(level)] for level in levels] for code in range(width)]
    expected = [[int(ids[code % len(ids)]) for ids in token_ids] for code in range(width)]
    texts = ["x" + "".join(row) + "y" for row in padded]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for row, ids, wanted in zip(padded, encoded, expected, strict=True):
        found = [token for token in ids if token in set(wanted)]
        if found != wanted:
            raise ModelError(
                f"the base model's tokenizer ({type(tokenizer).__name__}) splits or changes the "
                f"semantic ID {''.join(row)}: it reads {tokenizer.convert_ids_to_tokens(ids)}; "
                f"choose a base model whose tokenizer keeps added tokens whole"
            )


def _encode_texts(tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """All texts' tokens in one row, and where each text begins."""
    encoded = tokenizer(
        [text or " " for text in texts],
        add_special_tokens=False,
        truncation=True,
        max_length=_TEXT_TOKENS,
        return_attention_mask=False,
    )["input_ids"]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((token for ids in encoded for token in ids), np.int64, int(offsets[-1]))
    return torch.from_numpy(flat), torch.from_numpy(offsets)


@torch.no_grad()
def _average_texts(
    text_rows: torch.Tensor, tokens: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """The mean row of each text's tokens, (N, D) float32; zero for a text without tokens."""
    return torch.cat(
        [
            torch.nn.functional.embedding_bag(
                tokens[offsets[start] : offsets[stop]].to(text_rows.device),
                text_rows,
                (offsets[start:stop] - offsets[start]).to(text_rows.device),
                mode="mean",
            ).float()
            for start, stop in _chunks(len(offsets) - 1)
        ]
    )


@torch.no_grad()
def _start_rows(
    matrix: torch.Tensor,
    means: torch.Tensor,
    extension: Extension,
    codes: NDArray[np.int32],
    spread: float,
    generator: torch.Generator,
) -> None:
    for level, ids in enumerate(extension.token_ids):
        code = torch.from_numpy(codes[:, level].astype(np.int64)).to(matrix.device)
        sums = torch.zeros(len(ids), means.shape[1], device=matrix.device)
        sums.index_add_(0, code, means)
        counts = torch.bincount(code, minlength=len(ids))[:, None]
        rows = torch.where(counts > 0, sums / counts.clamp(min=1), means.mean(0))
        shake = torch.randn(rows.shape, generator=generator).to(matrix.device) * spread
        matrix[torch.from_numpy(ids).to(matrix.device)] = (rows + shake).to(matrix.dtype)


def _chunks(n_items: int) -> list[tuple[int, int]]:
    return [
        (start, min(start + _ITEMS_A_CHUNK, n_items)) for start in range(0, n_items, _ITEMS_A_CHUNK)
    ]

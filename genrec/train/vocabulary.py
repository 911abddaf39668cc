"""Semantic-ID tokens in a language model's vocabulary.

Owns how SID tokens, of items and of users, enter the tokenizer and where their rows start. Knows
nothing of adapters or of how the rows are trained.

Source: LC-Rec and TIGER add the tokens with random rows; starting from the mean of the text they
encode is DESIGN.md's rule.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken

from genrec.errors import ModelError
from genrec.tokenizers.sid_text import USER_PREFIX, format_token
from genrec.train.users import UserVocabulary

_TOKENS = {"": re.compile(r"<[a-z]_\d+>"), USER_PREFIX: re.compile(r"<u[a-z]_\d+>")}
_KINDS = {"": "semantic-ID", USER_PREFIX: "user"}
_TEXT_TOKENS = 128
_ITEMS_A_CHUNK = 2048
_log = logging.getLogger(__name__)

LevelTokens = tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, slots=True)
class Extension:
    """SID tokens in a tokenizer.

    Attributes:
        token_ids: of items; L arrays of (K,) int64, the token id of each code of a level.
        added: whether the items' are new.
        users: the same of users, where the instructions name them by semantic id.
    """

    token_ids: LevelTokens
    added: bool
    users: Extension | None = None

    @property
    def is_new(self) -> bool:
        """Whether any of the tokens, of items or users, are new."""
        return self.added or (self.users is not None and self.users.added)

    def flat_ids(self) -> list[int]:
        """All SID token ids, those of users too, ascending."""
        own = [int(token) for level in self.token_ids for token in level]
        return sorted(own + (self.users.flat_ids() if self.users else []))


def extend_vocabulary(
    model: Any,
    tokenizer: Any,
    codebook_sizes: Sequence[int],
    texts: Sequence[str],
    codes: NDArray[np.int32],
    *,
    noise: float,
    seed: int,
    users: UserVocabulary | None = None,
) -> Extension:
    """The SID tokens of every level and code, in tokenizer and model, unless they are all there.

    A new row of level l and code c is the mean, over the items with that code, of the mean row of
    their text, plus noise; codes that no item has start from the mean over all items. A user's
    code starts from the same mean over what its users chose for training. An untied head gets its
    rows the same way from its own matrix.

    Args:
        model: a decoder-only model; changed in place.
        tokenizer: its fast tokenizer; changed in place.
        codebook_sizes: K of each level.
        texts: N item texts.
        codes: item codes; row i is that of text i.
        noise: standard deviation of the noise, as a share of that of the text rows.
        seed: for the noise.
        users: adds their tokens too; None where no row names a user by semantic id.

    Shapes:
        codes: (N, L) int32.

    Raises:
        ModelError: other SID tokens are there already, or the tokenizer splits ours.
    """
    # Encoded before the SID tokens exist: item text that spells one must not read its row.
    first_new = len(tokenizer)
    tokens, offsets = _encode_texts(tokenizer, texts)
    extension = extend_tokenizer(tokenizer, codebook_sizes)
    if users is not None:
        named = extend_tokenizer(tokenizer, users.codebook_sizes, prefix=USER_PREFIX)
        extension = replace(extension, users=named)
    if not extension.is_new:
        _log.info(
            "train: the base model has this vocabulary already; its token rows are kept"
            if codebook_sizes
            else "train: items are known by their titles; no token is new"
        )
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
        everything = means.mean(0)
        if extension.added:
            rows = _average_codes(means, codes, extension.token_ids, everything)
            _start_rows(matrix, extension.token_ids, rows, spread, generator)
        if users is not None and extension.users is not None and extension.users.added:
            chosen = _average_choices(means, users)
            rows = _average_codes(chosen, users.codes, extension.users.token_ids, everything)
            _start_rows(matrix, extension.users.token_ids, rows, spread, generator)
    _log.info(
        "train: %d new token rows, %s head",
        len(tokenizer) - first_new,
        "tied" if len(matrices) == 1 else "untied",
    )
    return extension


def extend_tokenizer(
    tokenizer: Any, codebook_sizes: Sequence[int], *, prefix: str = ""
) -> Extension:
    """The SID tokens, added to `tokenizer` in place unless they are all there.

    They are ordinary added tokens: decoders skip special ones, and neither text normalisation nor
    neighbouring characters may change how they are read.

    Args:
        tokenizer: a fast tokenizer.
        codebook_sizes: K of each level; none where items are known by their titles.
        prefix: empty for items' tokens, `USER_PREFIX` for users'.

    Raises:
        ModelError: other tokens of this kind are there already, or the tokenizer splits ours.
    """
    levels = [
        [format_token(level, code, prefix) for code in range(size)]
        for level, size in enumerate(codebook_sizes)
    ]
    wanted = [token for level in levels for token in level]
    kind = _TOKENS[prefix]
    present = {token for token in tokenizer.get_added_vocab() if kind.fullmatch(token)}
    if present and present != set(wanted):
        raise ModelError(
            f"the base model already has {len(present):,} {_KINDS[prefix]} tokens of another "
            f"vocabulary (this tokenizer artefact has {len(wanted):,}, "
            f"{len(present & set(wanted)):,} of them in common); start from the model before it "
            f"was extended, or use the tokenizer artefact it was extended with"
        )
    if not present:
        tokenizer.add_tokens([_plain_token(token) for token in wanted])
    token_ids = tuple(
        np.array(tokenizer.convert_tokens_to_ids(level), dtype=np.int64) for level in levels
    )
    if wanted:
        _check_splits(tokenizer, levels, token_ids)
    return Extension(token_ids, added=bool(wanted) and not present)


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
def _average_choices(means: torch.Tensor, users: UserVocabulary) -> torch.Tensor:
    """The mean over what each user chose, (U, D) float32."""
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(users.item_index).to(means.device),
        means,
        torch.from_numpy(users.offsets[:-1]).to(means.device),
        mode="mean",
    )


@torch.no_grad()
def _average_codes(
    means: torch.Tensor,
    codes: NDArray[np.int32],
    token_ids: LevelTokens,
    everything: torch.Tensor,
) -> list[torch.Tensor]:
    """For each level the (K, D) mean over those with a code; `everything` where nobody has it."""
    levels = []
    for level, ids in enumerate(token_ids):
        code = torch.from_numpy(codes[:, level].astype(np.int64)).to(means.device)
        sums = torch.zeros(len(ids), means.shape[1], device=means.device)
        sums.index_add_(0, code, means)
        counts = torch.bincount(code, minlength=len(ids))[:, None]
        levels.append(torch.where(counts > 0, sums / counts.clamp(min=1), everything))
    return levels


@torch.no_grad()
def _start_rows(
    matrix: torch.Tensor,
    token_ids: LevelTokens,
    levels: Sequence[torch.Tensor],
    spread: float,
    generator: torch.Generator,
) -> None:
    for ids, rows in zip(token_ids, levels, strict=True):
        shake = torch.randn(rows.shape, generator=generator).to(matrix.device) * spread
        matrix[torch.from_numpy(ids).to(matrix.device)] = (rows + shake).to(matrix.dtype)


def _chunks(n_items: int) -> list[tuple[int, int]]:
    return [
        (start, min(start + _ITEMS_A_CHUNK, n_items)) for start in range(0, n_items, _ITEMS_A_CHUNK)
    ]

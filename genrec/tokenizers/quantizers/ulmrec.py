"""ULMRec's user IDs: a user's review vector fused with an embedding of the user's id, then RQ-VAE.

Owns the fusion, and which user has which id. Knows neither the network that quantizes nor texts.

Source: Shao et al. 2024, "ULMRec: user-centric large language model for sequential recommendation"
(arXiv 2412.05543): attention brings a learned id embedding into the embedding of a user's reviews,
and an RQ-VAE quantizes the result; the IDs that its repository publishes have 4 levels of 256
codes. The repository has no code for it, and only abstract and summaries of the paper were at hand,
so what the attention's query is, and what keeps the ids from meaning nothing, is ours:

- The review vector asks; it attends to itself and to the id. What it gets is added to it.
- If the network had to restore what it is given, ids that make this easy would be best, whatever
  the reviews say. So it is given the fused vector, and has to restore the review vector alone; and
  what is added is never longer than `id_share` of a review vector's mean length.
- A user who comes later has no id of its own, and gets the mean of all. In training some users of
  each batch do too, so that the network knows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sections import UlmRecSection
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray, IndexArray

_USERS = "ulmrec.users"
_SPREAD = 0.1
_LATER = -1


class UserFusion(nn.Module):
    """Review vectors and the ids of their users to vectors of the same width."""

    def __init__(self, user_ids: Sequence[str], dimensions: int, values: UlmRecSection) -> None:
        """Random ids and weights for these users."""
        super().__init__()
        width = values.id_dimensions
        self.ids = nn.Parameter(torch.randn(len(user_ids), width) * _SPREAD)
        self.query = nn.Linear(dimensions, width)
        self.attention = nn.MultiheadAttention(width, values.heads, batch_first=True)
        self.expand = nn.Linear(width, dimensions, bias=False)
        self._numbers = {user_id: row for row, user_id in enumerate(user_ids)}
        self._longest = values.id_share * math.sqrt(dimensions)
        self._id_dropout = values.id_dropout

    def number_items(self, given: FitInput) -> IndexArray:
        """The row of each user's id; -1 for users who were not fitted.

        Raises:
            DataError: the vectors are those of items.
        """
        if given.subject != "users":
            raise DataError(
                f"ulmrec-users gives IDs to users, but these embeddings hold {given.subject}; make "
                f"users' with `genrec embed subject=users`, or use the recipe rqvae for items"
            )
        return np.array([self._numbers.get(user, _LATER) for user in given.item_ids], np.int64)

    def forward(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """Scaled review vectors (n, D) with the ids of the users (n,) brought in."""
        is_later = numbers == _LATER
        if self.training:
            is_later = is_later | (torch.rand(numbers.shape, device=numbers.device)
                                   < self._id_dropout)  # fmt: skip
        mean = self.ids.mean(dim=0)
        ids = torch.where(is_later[:, None], mean, self.ids[numbers.clamp(min=0)])
        review = self.query(vectors)
        tokens = torch.stack([review, ids], dim=1)
        attended = self.attention(review[:, None], tokens, tokens, need_weights=False)[0]
        added = self.expand(attended[:, 0])
        # Scaled vectors have a mean square of 1, and so a mean length of the root of D.
        length = added.norm(dim=1, keepdim=True).clamp(min=torch.finfo(added.dtype).tiny)
        fused: Tensor = vectors + added * (self._longest / length).clamp(max=1.0)
        return fused


class UlmRec:
    """The quantizer of users: an RQ-VAE of review vectors that are fused with ids."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """A network with random weights; there are no ids before the users are known."""
        self._recipe = recipe
        self._dimensions = dimensions
        self._take_users(())

    def _take_users(self, user_ids: Sequence[str]) -> None:
        self._users = tuple(user_ids)
        self._rqvae = RqVae(
            self._recipe,
            self._dimensions,
            make_fusion=lambda: UserFusion(user_ids, self._dimensions, self._recipe.ulmrec),
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The recipe's."""
        return self._rqvae.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, d) a level, as fitted."""
        return self._rqvae.codebooks

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Train ids and network together; losses by epoch.

        Raises:
            DataError: the vectors are those of items.
        """
        self._take_users(given.item_ids)
        return self._rqvae.fit(given)

    def encode(self, given: FitInput) -> CodeArray:
        """The codes of fused vectors; users who were not fitted have the mean id.

        Raises:
            DataError: the vectors are those of items.
        """
        return self._rqvae.encode(given)

    def project(self, given: FitInput) -> FloatArray:
        """The latents of fused vectors.

        Raises:
            DataError: the vectors are those of items.
        """
        return self._rqvae.project(given)

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """The review vectors that codes stand for."""
        return self._rqvae.decode_codes(codes)

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """The network's weights, and whose each id is."""
        users = json.dumps(self._users, ensure_ascii=False).encode()
        return {**self._rqvae.list_weights(), _USERS: np.frombuffer(users, np.uint8).copy()}

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this quantizer does not have.
        """
        rest = dict(weights)
        users = rest.pop(_USERS, None)
        if users is None:
            raise ArtifactError(f"weights lack {_USERS}, so they are not those of ulmrec-users")
        self._take_users(json.loads(users.tobytes().decode()))
        self._rqvae.restore_weights(rest)

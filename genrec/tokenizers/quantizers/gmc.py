"""GMC: one codebook shared by the items of several domains, which the codes tell apart.

Owns the domains, the contrastive loss over them, and the level that names them. Knows no network.

Source: Jin et al. 2025, "Generative multi-target cross-domain recommendation" (arXiv 2507.12871):
an RQ-VAE over the items of all domains, with a loss by which items of one domain attract and items
of others repel. There is no public code, and only abstract and summaries were at hand. So the form
of the loss is the supervised contrastive one (Khosla et al. 2020, "Supervised contrastive
learning", the sum outside the logarithm) on the cosines of the encoder's latents; on quantized ones
it learned the same. Its temperature and weight are ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from genrec.errors import ArtifactError, CapacityError, DataError, join_problems
from genrec.tokenizers.inputs import DATA, VECTORS, FitInput
from genrec.tokenizers.measures.categories import split_paths
from genrec.tokenizers.quantizers.losses import AuxiliaryLoss, TrainBatch
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray, check_capacity
from genrec.types import FloatArray, IndexArray

_DOMAINS = "gmc.domains"
_DISTANCE = "gmc.distance"
_FARTHER = 1000.0
_SHOWN = 5


def find_gmc_needs(recipe: TokenizeRecipe) -> frozenset[str]:
    """Vectors, and the data that says which item belongs to which domain."""
    del recipe
    return frozenset({VECTORS, DATA})


def read_domains(given: FitInput, column: str) -> list[str]:
    """The domain of each item: a column's value, and of a category path its root.

    Raises:
        DataError: no data, no such column, or items without a domain, which are named.
    """
    if given.subject != "items":
        raise DataError(
            f"gmc reads the domains of items, but these embeddings hold {given.subject}; "
            f"use the recipe rqvae or ulmrec-users"
        )
    if given.dataset is None:
        raise DataError(
            f"gmc needs the items' domains (gmc.domain_field: {column}); give their data "
            f"(--data, output of `genrec data`)"
        )
    paths = split_paths(given.read_column(column))
    empty = [item_id for item_id, path in zip(given.item_ids, paths, strict=True) if not path]
    if empty:
        shown = ", ".join(map(repr, empty[:_SHOWN])) + (", ..." if len(empty) > _SHOWN else "")
        raise DataError(
            f"{len(empty):,} of {given.n_items:,} items have no {column!r} and so no domain "
            f"({shown}); fill the column in the source, or name another in gmc.domain_field"
        )
    return [path[0] for path in paths]


class DomainLoss:
    """The domain-aware contrastive loss: items of one domain attract, others repel."""

    def __init__(self, domains: IndexArray, temperature: float, weight: float) -> None:
        """Remember the domain (N,) of each item."""
        self._domains = torch.from_numpy(domains)
        self._temperature = temperature
        self._weight = weight

    def parameters(self) -> Iterable[nn.Parameter]:
        """None."""
        return ()

    def start_epoch(self, codebooks: Sequence[Tensor]) -> None:
        """Nothing."""

    def measure(self, batch: TrainBatch) -> Tensor:
        """The weighted mean over the items that are not alone of their domain in the batch.

        Per item: minus the mean, over the others of its domain, of their log-share of the softmax
        of cosines over all others in the batch.
        """
        direction = functional.normalize(batch.latents, dim=1)
        domain = self._domains[batch.rows.cpu()].to(direction.device)
        itself = torch.eye(len(domain), dtype=torch.bool, device=domain.device)
        same = (domain[:, None] == domain[None]) & ~itself
        others = same.sum(dim=1)
        if not others.any():
            return batch.latents.new_zeros(())
        cosines = direction @ direction.T / self._temperature
        shares = cosines.masked_fill(itself, -torch.inf).log_softmax(dim=1)
        attracted = shares.masked_fill(~same, 0.0).sum(dim=1)
        return -self._weight * (attracted[others > 0] / others[others > 0]).mean()


@dataclass(frozen=True, slots=True)
class _DomainLevel:
    """The level that names the domain.

    Attributes:
        names: domain c has code c.
        distance: the coordinate that an item has in its domain's direction: so much larger than any
            latent that the nearest free codes are always in the item's own domain.
    """

    names: tuple[str, ...]
    distance: float


class Gmc:
    """An RQ-VAE that trains with the domains' loss, and may put the domain before its codes."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """A network with random weights; domains are known once fitted or restored."""
        self._recipe = recipe
        self._values = recipe.gmc
        self._rqvae = RqVae(recipe, dimensions, make_losses=self._make_losses)
        self._level: _DomainLevel | None = None

    @property
    def fixed_levels(self) -> int:
        """How many first levels an item must keep when codes are made unique."""
        return int(self._values.domain_token)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The recipe's, after the number of domains where these are a level of their own."""
        sizes = self._rqvae.codebook_sizes
        return sizes if self._level is None else (len(self._level.names), *sizes)

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook a level, as fitted.

        With a domain level, each latent has one coordinate more for each domain. The domains' rows
        have a large number there and 0 elsewhere; the codes' rows have 0 there. So a latent is
        still near the sum of its codes' rows.
        """
        books = self._rqvae.codebooks
        if self._level is None:
            return books
        n_domains = len(self._level.names)
        first = np.eye(n_domains, n_domains + books[0].shape[1], dtype=np.float32)
        padded = (np.pad(book, ((0, 0), (n_domains, 0))) for book in books)
        return (first * np.float32(self._level.distance), *padded)

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Train the RQ-VAE with the domains' loss; losses by epoch.

        Raises:
            CapacityError: a domain with more items than there are codes, with a domain level.
            DataError: items without a domain, or all of one.
        """
        domains = read_domains(given, self._values.domain_field)
        counts = Counter(domains)
        if len(counts) == 1:
            raise DataError(
                f"all {given.n_items:,} items are of the domain {domains[0]!r} (column "
                f"{self._values.domain_field!r}), but gmc tells several apart; name another "
                f"column in gmc.domain_field, or use the recipe rqvae"
            )
        if self._values.domain_token and self._recipe.unique != "suffix":
            self._check_room(counts)
        history = self._rqvae.fit(given)
        if self._values.domain_token:
            self._level = _DomainLevel(tuple(sorted(counts)), self._measure_distance(given))
        return history

    def _check_room(self, counts: Counter[str]) -> None:
        domain, largest = counts.most_common(1)[0]
        try:
            check_capacity(largest, self._rqvae.codebook_sizes)
        except CapacityError as error:
            raise CapacityError(f"domain {domain!r}: {error}") from error

    def _measure_distance(self, given: FitInput) -> float:
        """Far more than the longest latent and the longest sum of codes, taken together."""
        books = self._rqvae.codebooks
        longest = np.linalg.norm(self._rqvae.project(given), axis=1).max()
        reach = sum(np.linalg.norm(book, axis=1).max() for book in books)
        return float(np.float32(_FARTHER * max(1.0, longest + reach)))

    def _make_losses(
        self, recipe: TokenizeRecipe, given: FitInput, latent_size: int
    ) -> list[AuxiliaryLoss]:
        del latent_size
        values = recipe.gmc
        if values.contrast == 0:
            return []
        domains = read_domains(given, values.domain_field)
        numbers = np.unique(domains, return_inverse=True)[1].astype(np.int64)
        return [DomainLoss(numbers, values.temperature, values.contrast)]

    def _find_domains(self, given: FitInput, level: _DomainLevel) -> IndexArray:
        """The domain code of each item.

        Raises:
            DataError: items of a domain that the tokenizer was not fitted to.
        """
        number = {name: code for code, name in enumerate(level.names)}
        domains = read_domains(given, self._values.domain_field)
        unknown = sorted(set(domains) - number.keys())
        if unknown:
            raise DataError(
                join_problems(
                    f"the tokenizer knows the domains {', '.join(level.names)}, but not these; fit "
                    f"it again with their items, or correct the column "
                    f"{self._values.domain_field!r}",
                    [repr(name) for name in unknown],
                )
            )
        return np.array([number[domain] for domain in domains], dtype=np.int64)

    def encode(self, given: FitInput) -> CodeArray:
        """The RQ-VAE's codes, after the domain's where it is a level.

        Raises:
            DataError: with a domain level, items without data or of an unknown domain.
        """
        if self._level is None:
            return self._rqvae.encode(given)
        domains = self._find_domains(given, self._level)
        return np.concatenate([domains[:, None], self._rqvae.encode(given)], axis=1, dtype=np.int32)

    def project(self, given: FitInput) -> FloatArray:
        """The RQ-VAE's latents, after the domain's coordinates where it is a level.

        Raises:
            DataError: with a domain level, items without data or of an unknown domain.
        """
        latents = self._rqvae.project(given)
        if self._level is None:
            return latents
        domains = self._find_domains(given, self._level)
        first = np.eye(len(self._level.names), dtype=np.float32)[domains]
        return np.concatenate([first * np.float32(self._level.distance), latents], axis=1)

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """What the RQ-VAE makes of the codes; the domain's changes nothing."""
        return self._rqvae.decode_codes(codes[:, self.fixed_levels :])

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """The RQ-VAE's weights, and the domains' names where they are a level."""
        weights: dict[str, NDArray[Any]] = dict(self._rqvae.list_weights())
        if self._level is not None:
            names = json.dumps(self._level.names, ensure_ascii=False).encode()
            weights[_DOMAINS] = np.frombuffer(names, dtype=np.uint8).copy()
            weights[_DISTANCE] = np.array([self._level.distance], dtype=np.float32)
        return weights

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this quantizer does not have.
        """
        rest = dict(weights)
        names, distance = rest.pop(_DOMAINS, None), rest.pop(_DISTANCE, None)
        if (names is None or distance is None) == self._values.domain_token:
            raise ArtifactError(
                f"weights hold {'no' if names is None else 'a'} domain level, but the recipe has "
                f"gmc.domain_token={self._values.domain_token}"
            )
        self._rqvae.restore_weights(rest)
        if names is not None and distance is not None:
            self._level = _DomainLevel(
                tuple(json.loads(names.tobytes().decode())), float(distance[0])
            )

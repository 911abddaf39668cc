"""RQ-VAE: an autoencoder whose latent is a sum of codes, one from each level.

Owns fitting, encoding and the weights. Knows neither uniqueness nor how the network is trained.

Source: TIGER (Rajput et al. 2023, section 3.1) and LC-Rec (Zheng et al. 2024, section 3.2.1); the
modules of network, codes and training say where they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from genrec.errors import ArtifactError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.device import check_device, find_device
from genrec.tokenizers.quantizers.losses import LossMaker
from genrec.tokenizers.quantizers.rqvae_codes import ResidualCodes, find_codes
from genrec.tokenizers.quantizers.rqvae_network import CodeLayer, Fusion, RqVaeNetwork
from genrec.tokenizers.quantizers.rqvae_rows import TrainingRows
from genrec.tokenizers.quantizers.rqvae_trainer import RqVaeTrainer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.tokenizers.vectors import CHUNK_ROWS, read_chunks
from genrec.types import FloatArray

_DEVICE_KEY = "rqvae.device"
_CHUNK_VALUES = 1 << 24


class RqVae:
    """The quantizer that the recipe's `rqvae` section describes."""

    def __init__(
        self,
        recipe: TokenizeRecipe,
        dimensions: int,
        make_losses: LossMaker | None = None,
        *,
        make_codes: Callable[[TokenizeRecipe], CodeLayer] = ResidualCodes,
        make_fusion: Callable[[], Fusion] | None = None,
    ) -> None:
        """A network with random weights drawn from the recipe's seed.

        Args:
            recipe: sizes and schedule.
            dimensions: D.
            make_losses: further losses to train with.
            make_codes: the codes in the network's middle.
            make_fusion: what joins vectors with more, before the encoder.

        Raises:
            RecipeError: a device that has no such name.
        """
        self._recipe = recipe
        self._make_losses = make_losses
        check_device(recipe.rqvae.device, _DEVICE_KEY)
        with _seed_torch(recipe.seed, torch.device("cpu")):
            fusion = make_fusion() if make_fusion else None
            codes = make_codes(recipe)
            self._network = RqVaeNetwork(dimensions, codes, recipe.rqvae, fusion).eval()
        self._exact: RqVaeNetwork | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The recipe's."""
        return self._recipe.codebook_sizes

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """One codebook (K, d) a level, as fitted."""
        books = self._network.codes.list_codebooks()
        return tuple(book.detach().numpy().astype(np.float32) for book in books)

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Train until held-out items stop improving, keep the best; losses by epoch.

        With the same seed, CPU and number of threads the result is the same, bit by bit, unless
        `max_seconds` cut it off. On a GPU it is nearly so: there, torch adds in any order.

        Raises:
            RecipeError: the recipe's GPU is not in this machine.
        """
        recipe = self._recipe
        device = find_device(recipe.rqvae.device, _DEVICE_KEY)
        fusion = self._network.fusion
        numbers = fusion.number_items(given) if fusion is not None else None
        with _seed_torch(recipe.seed, device):
            self._network.to(device)
            width = self._network.codes.width
            losses = self._make_losses(recipe, given, width) if self._make_losses else ()
            rows = TrainingRows(given.rows, device, numbers)
            history = RqVaeTrainer(self._network, rows, recipe.rqvae, losses).train()
        self._network.cpu().eval()
        self._exact = None
        return history

    def project(self, given: FitInput) -> FloatArray:
        """The encoder's latents, (N, d)."""
        chunks = [latents.float().cpu().numpy() for _, latents in self._read_latents(given)]
        return np.concatenate(chunks)

    def encode(self, given: FitInput) -> CodeArray:
        """At each level the code nearest to what the levels before left over.

        An item's codes do not depend on the items beside it.
        """
        books = self._find_exact().codes.list_codebooks()
        codes = np.empty((given.n_items, len(books)), dtype=np.int32)
        for start, latents in self._read_latents(given):
            with torch.inference_mode():
                found = find_codes(latents, books)
            codes[start : start + len(found)] = found.cpu().numpy()
        return codes

    def decode_codes(self, codes: CodeArray) -> FloatArray:
        """What the decoder makes of the sum of the codes' rows."""
        network = self._find_exact()
        books = network.codes.list_codebooks()
        step = self._count_rows()
        vectors = np.empty((len(codes), len(network.center)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(codes), step):
                chunk = torch.from_numpy(codes[start : start + step].astype(np.int64))
                chunk = chunk.to(network.center.device)
                rows = [book[chunk[:, level]] for level, book in enumerate(books)]
                decoded = network.decode_latents(torch.stack(rows).sum(0))
                vectors[start : start + step] = decoded.float().cpu().numpy()
        return vectors

    def list_weights(self) -> dict[str, FloatArray]:
        """Every weight, moving average and scale, by name."""
        state = self._network.state_dict()
        return {name: value.float().numpy().copy() for name, value in state.items()}

    def restore_weights(self, weights: dict[str, FloatArray]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names or shapes that this network does not have.
        """
        own = self._network.state_dict()
        problems = sorted(own.keys() ^ weights.keys()) + sorted(
            name
            for name in own.keys() & weights.keys()
            if tuple(own[name].shape) != weights[name].shape
        )
        if problems:
            raise ArtifactError(
                f"weights are not those of this RQ-VAE; names or shapes differ: "
                f"{', '.join(problems[:5])}"
            )
        given = {name: torch.from_numpy(weights[name]).to(own[name].dtype) for name in own}
        self._network.load_state_dict(given)
        self._exact = None

    def _find_exact(self) -> RqVaeNetwork:
        """The network in float64, in which rounding does not decide an item's codes.

        It is where the recipe says, or elsewhere if this machine lacks that GPU: a vocabulary that
        was fitted on one can be used without.
        """
        if self._exact is None:
            device = find_device(self._recipe.rqvae.device, _DEVICE_KEY, or_other=True)
            exact = copy.deepcopy(self._network).double().requires_grad_(False)
            self._exact = exact.to(device).eval()
        return self._exact

    def _count_rows(self) -> int:
        """How many items a chunk may have, so that no matrix of it is large."""
        widest = max(*self._recipe.codebook_sizes, *self._recipe.rqvae.hidden_sizes, 1)
        return max(1, min(CHUNK_ROWS, _CHUNK_VALUES // widest))

    def _read_latents(self, given: FitInput) -> Iterator[tuple[int, Tensor]]:
        """The first row's number and the latents (n, d) of a chunk of items, in float64."""
        network = self._find_exact()
        device, fusion = network.center.device, network.fusion
        known = fusion.number_items(given) if fusion is not None else None
        for start, chunk in read_chunks(given.rows, self._count_rows()):
            numbers = None
            if known is not None:
                numbers = torch.from_numpy(known[start : start + len(chunk)]).to(device)
            with torch.inference_mode():
                vectors = torch.from_numpy(chunk.astype(np.float64)).to(device)
                latents = network.encode_latents(vectors, numbers)
            yield start, latents


@contextmanager
def _seed_torch(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from this seed inside the block, and go on as before after it."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield

"""What a text encoder is, which there are, and how texts go through one.

Owns the Protocol, the dict that names encoders, and the order of the work: known texts from the
cache, the others sorted by length and kept shard by shard. Knows no item and no artefact.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from genrec.errors import DataError, ModelError
from genrec.progress import show_progress
from genrec.recipe import find_choice
from genrec.tokenizers.embedding.lsa import LsaEncoder
from genrec.tokenizers.embedding.sentence import SentenceEncoder
from genrec.tokenizers.embedding.vector_cache import VectorCache, hash_text
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.types import FloatArray

_log = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """Texts to vectors."""

    @property
    def digest(self) -> str:
        """What identifies a vector's maker; empty if a vector depends on the other texts too."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (N, D), in the texts' order."""
        ...


@runtime_checkable
class FitsTexts(Protocol):
    """An encoder whose vectors depend on all texts, which can yet place later ones among them."""

    def fit_texts(self, texts: Sequence[str]) -> TextEncoder:
        """An encoder of later texts, in the space of these."""
        ...


EncoderMaker = Callable[[EmbedRecipe], TextEncoder]

ENCODERS: dict[str, EncoderMaker] = {
    "lsa": LsaEncoder,
    "sentence-transformers": SentenceEncoder,
}


def build_encoder(recipe: EmbedRecipe) -> TextEncoder:
    """The encoder that the recipe names.

    Raises:
        RecipeError: an unknown name.
        ModelError: a model that cannot be loaded.
    """
    return find_choice("encoder", recipe.encoder, ENCODERS)(recipe)


def build_later_encoder(
    recipe: EmbedRecipe, read_texts: Callable[[], Sequence[str]]
) -> TextEncoder:
    """An encoder of single texts, in the space of a catalogue that was embedded by this recipe.

    Args:
        recipe: what the catalogue was embedded by.
        read_texts: gives the catalogue's texts; asked only where the encoder needs them.

    Raises:
        DataError: an encoder whose vectors depend on all texts, and that has no `fit_texts`.
        ModelError: a model that cannot be loaded.
    """
    encoder = build_encoder(recipe)
    if isinstance(encoder, FitsTexts):
        return encoder.fit_texts(read_texts())
    if not encoder.digest:
        raise DataError(
            f"encoder {recipe.encoder!r} gives a text a vector that depends on all others, so it "
            f"cannot embed single ones; use sentence-transformers, and fit the tokenizer again"
        )
    return encoder


ShardEncoder = Callable[[Sequence[Sequence[str]]], Iterator[tuple[int, FloatArray]]]
"""From shards of texts to each shard's number and vectors, in any order."""


class TextEngine(Protocol):
    """Embeds texts elsewhere than in this process, with the same result."""

    def split_texts(self, recipe: EmbedRecipe, encoder: TextEncoder) -> ShardEncoder:
        """What embeds shards of texts.

        Raises:
            RecipeError: an encoder whose work cannot be split.
        """
        ...


def encode_with_cache(
    encoder: TextEncoder,
    texts: Sequence[str],
    cache: Path,
    shard_items: int,
    *,
    encode_shards: ShardEncoder | None = None,
) -> Iterator[FloatArray]:
    """Vectors (n, D) of the texts, chunk by chunk and in their order.

    No text that the cache holds is embedded, and none twice. Vectors go through the cache's files,
    so that memory does not grow with them; only an encoder without a digest, whose vectors depend
    on all texts, gives them in one chunk.

    Args:
        encoder: what embeds the texts that are new.
        texts: one an item.
        cache: folder of all caches; not used by an encoder without a digest.
        shard_items: texts between two writes.
        encode_shards: embeds shards of texts elsewhere; None does so here, with the encoder.

    Raises:
        ModelError: the encoder gave a value that is not finite.
    """
    if not encoder.digest:
        yield _check_finite(encoder.encode_texts(texts))
        return
    held = VectorCache(cache / encoder.digest)
    keys = [hash_text(text) for text in texts]
    new = {key: text for key, text in zip(keys, texts, strict=True) if key not in held}
    # Alike lengths waste no padding; the longest first, so that memory runs out at once or never.
    work = sorted(new.items(), key=lambda pair: (-len(pair[1]), pair[1]))
    _log.info(
        "embed: %s texts to embed, %s cached", f"{len(work):,}", f"{len(texts) - len(work):,}"
    )
    shards = [work[start : start + shard_items] for start in range(0, len(work), shard_items)]
    run = encode_shards or partial(_encode_here, encoder)
    with show_progress("embedding texts", total=len(work), unit="texts") as advance:
        for number, vectors in run([[text for _, text in shard] for shard in shards]):
            held.add_shard([key for key, _ in shards[number]], _check_finite(vectors))
            advance(len(vectors))
    yield from held.find_vectors(keys)


def _encode_here(
    encoder: TextEncoder, shards: Sequence[Sequence[str]]
) -> Iterator[tuple[int, FloatArray]]:
    for number, shard in enumerate(shards):
        yield number, encoder.encode_texts(shard)


def _check_finite(vectors: FloatArray) -> FloatArray:
    bad = int((~np.isfinite(vectors).all(axis=1)).sum())
    if bad:
        raise ModelError(
            f"the encoder gave NaN or infinity for {bad:,} of {len(vectors):,} texts; "
            f"use another model, or run it in float32"
        )
    return vectors.astype(np.float32, copy=False)

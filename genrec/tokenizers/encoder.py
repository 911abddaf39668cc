"""What a text encoder is, which there are, and how texts go through one.

Owns the Protocol, the dict that names encoders, and the order of the work: known texts from the
cache, the others sorted by length and kept shard by shard. Knows no item and no artefact.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from genrec.errors import ModelError
from genrec.progress import show_progress
from genrec.recipe import find_choice
from genrec.tokenizers.lsa import LsaEncoder
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.sentence import SentenceEncoder
from genrec.tokenizers.vector_cache import VectorCache, hash_text
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


def encode_with_cache(
    encoder: TextEncoder, texts: Sequence[str], cache: Path, shard_items: int
) -> FloatArray:
    """Vectors (N, D) of the texts; none that the cache holds, and none twice, is embedded.

    Args:
        encoder: what embeds the texts that are new.
        texts: one an item.
        cache: folder of all caches; not used by an encoder without a digest.
        shard_items: texts between two writes.

    Raises:
        ModelError: the encoder gave a value that is not finite.
    """
    if not encoder.digest:
        return _check_finite(encoder.encode_texts(texts))
    held = VectorCache(cache / encoder.digest)
    keys = [hash_text(text) for text in texts]
    new = {key: text for key, text in zip(keys, texts, strict=True) if key not in held}
    # Alike lengths waste no padding; the longest first, so that memory runs out at once or never.
    work = sorted(new.items(), key=lambda pair: (-len(pair[1]), pair[1]))
    _log.info(
        "embed: %s texts to embed, %s cached", f"{len(work):,}", f"{len(texts) - len(work):,}"
    )
    with show_progress("embedding items", total=len(work), unit="items") as advance:
        for start in range(0, len(work), shard_items):
            shard = work[start : start + shard_items]
            vectors = _check_finite(encoder.encode_texts([text for _, text in shard]))
            held.add_shard([key for key, _ in shard], vectors)
            advance(len(shard))
    return held.find_vectors(keys)


def _check_finite(vectors: FloatArray) -> FloatArray:
    bad = int((~np.isfinite(vectors).all(axis=1)).sum())
    if bad:
        raise ModelError(
            f"the encoder gave NaN or infinity for {bad:,} of {len(vectors):,} texts; "
            f"use another model, or run it in float32"
        )
    return vectors.astype(np.float32, copy=False)

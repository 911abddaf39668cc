"""Sentence-transformers models as encoders.

Owns loading one, its digest and its batches. Knows no item, no file of vectors and no cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from genrec.errors import ModelError
from genrec.recipe import expand_path
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.sections import SentenceSection
from genrec.types import FloatArray


class SentenceEncoder:
    """The encoder that the recipe's `sentence_transformers` section describes."""

    def __init__(self, recipe: EmbedRecipe) -> None:
        """Load the model.

        Raises:
            ModelError: it cannot be found or opened.
        """
        self._values = recipe.sentence_transformers
        self._model = _load_model(self._values)
        if self._values.max_tokens is not None:
            self._model.max_seq_length = self._values.max_tokens
        self.digest = self._hash_model()

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (N, D), each of its own text only."""
        vectors = self._model.encode(
            list(texts),
            batch_size=self._values.batch_size,
            prompt=self._values.prompt or None,
            normalize_embeddings=self._values.normalize,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _hash_model(self) -> str:
        """The sha256 over everything that decides a vector: weights, tokenizer and settings.

        Weights are hashed as loaded, so a hub name and a copy on disk share their cached vectors.
        """
        values = self._values
        digest = hashlib.sha256()
        settings = [self._model.max_seq_length, values.prompt, values.normalize, str(self._model)]
        digest.update(json.dumps(settings).encode())
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        digest.update((backend.to_str() if backend else repr(self._model.tokenizer)).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.hexdigest()


def _load_model(values: SentenceSection) -> Any:
    # Takes seconds to import, and only this encoder needs it.
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    path = expand_path(values.model)
    try:
        return SentenceTransformer(
            str(path) if path.is_dir() else values.model,
            revision=values.revision,
            device=None if values.device == "auto" else values.device,
            trust_remote_code=values.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"sentence-transformers model {values.model!r} cannot be loaded: {error}\n"
            f"Check the name or path (and the network, for a hub name), or use the encoder lsa, "
            f"which needs no download"
        ) from error

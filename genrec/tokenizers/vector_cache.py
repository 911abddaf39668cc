"""Vectors of texts, kept between runs.

Owns the shards on disk: a text that was embedded once by a model is not embedded again, and a run
that was killed goes on where it was. Knows neither items nor models, only keys and vectors.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from genrec.types import FloatArray

_log = logging.getLogger(__name__)


def hash_text(text: str) -> bytes:
    """The key of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def default_cache() -> Path:
    """Where vectors are kept: `$GENREC_CACHE`, else `genrec` in the user's cache folder."""
    if "GENREC_CACHE" in os.environ:
        return Path(os.environ["GENREC_CACHE"]).expanduser()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "genrec"


class VectorCache:
    """The vectors that one model made, in one folder of safetensors shards.

    Several processes may write to one folder: shards are named by their content and appear whole.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there; a shard that cannot be read is left out and logged."""
        self._folder = folder
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._shards: list[FloatArray] = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                tensors = load_file(path)
                keys, vectors = tensors["keys"], tensors["vectors"]
            except (SafetensorError, KeyError) as error:
                _log.warning("cached vectors in %s are damaged and not used: %s", path, error)
                continue
            self._take_over([row.tobytes() for row in keys], vectors)

    def __contains__(self, key: bytes) -> bool:
        """Whether the text of that key was embedded."""
        return key in self._rows

    def add_shard(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        """Keep vectors (n, D) for these keys, on disk before this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
        part = self._folder / f"{name}.{os.getpid()}.part"
        packed = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        try:
            save_file({"keys": packed, "vectors": np.ascontiguousarray(vectors)}, part)
            part.replace(self._folder / f"{name}.safetensors")
        finally:
            part.unlink(missing_ok=True)
        self._take_over(keys, vectors)

    def find_vectors(self, keys: Sequence[bytes]) -> FloatArray:
        """The vectors of these keys, in their order; every key must be held."""
        places = [self._rows[key] for key in keys]
        return np.stack([self._shards[shard][row] for shard, row in places])

    def _take_over(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        self._shards.append(vectors)
        shard = len(self._shards) - 1
        self._rows.update((key, (shard, row)) for row, key in enumerate(keys))

"""Vectors of texts, kept between runs.

Owns the shards on disk: a text that was embedded once by a model is not embedded again, and a run
that was killed goes on where it was. Keys are held in memory, vectors are not. Knows neither items
nor models.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genrec.errors import ArtifactError
from genrec.tokenizers.vectors import CHUNK_ROWS, ShardedVectors, map_tensor
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
        """Read the keys that are there; a shard that cannot be read is left out and logged."""
        self._folder = folder
        self._rows: dict[bytes, int] = {}
        self._shards: list[FloatArray] = []
        self._n_rows = 0
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "numpy") as file:
                    keys = file.get_tensor("keys")
                vectors = map_tensor(path, "vectors")
            except (SafetensorError, ArtifactError) as error:
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
        path = self._folder / f"{name}.safetensors"
        part = self._folder / f"{name}.{os.getpid()}.part"
        packed = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        try:
            save_file({"keys": packed, "vectors": np.ascontiguousarray(vectors, np.float32)}, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._take_over(keys, map_tensor(path, "vectors"))

    def find_vectors(self, keys: Sequence[bytes], rows: int = CHUNK_ROWS) -> Iterator[FloatArray]:
        """The vectors (n, D) of these keys, in their order, `rows` at a time.

        Every key must be held. Memory does not grow with the number of keys.
        """
        held = ShardedVectors(self._shards)
        for start in range(0, len(keys), rows):
            yield held[np.array([self._rows[key] for key in keys[start : start + rows]])]

    def _take_over(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        self._shards.append(vectors)
        self._rows.update((key, self._n_rows + row) for row, key in enumerate(keys))
        self._n_rows += len(keys)

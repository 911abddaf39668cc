"""Vectors that need not fit in memory: rows of memory-mapped safetensors shards.

Owns the shards' files and how rows are read from them. Knows neither items nor what vectors mean.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genrec.errors import ArtifactError
from genrec.types import FloatArray, IndexArray

CHUNK_ROWS = 8192
SHARD_BYTES = 1 << 28
_READ_ROWS = 256
VECTORS_NAME = "embeddings"
_HEADER_BYTES = 8


class ShardedVectors:
    """The rows of several shards, one after the other, none of them loaded.

    What is read is copied, and the pages of the file that it came from are let go of: otherwise
    they count as used memory until something else needs it, and a row at random holds 64 KiB.
    """

    def __init__(self, shards: Sequence[FloatArray]) -> None:
        """Lay shards (n, D) end to end; arrays or memory maps of one width."""
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), int(shards[0].shape[1]))

    def __len__(self) -> int:
        """How many rows there are."""
        return self.shape[0]

    def __getitem__(self, rows: slice | IndexArray) -> FloatArray:
        """Some rows as an array in memory, in the order asked for."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        result = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        home = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(home, kind="stable")
        found, first = np.unique(home[order], return_index=True)
        for shard, begin, end in zip(found, first, np.append(first, len(order))[1:], strict=True):
            for part in range(begin, end, _READ_ROWS):
                places = order[part : min(part + _READ_ROWS, end)]
                result[places] = self._shards[shard][rows[places] - self._starts[shard]]
                _release_pages(self._shards[shard])
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """All rows, for functions of numpy; `copy` changes nothing, it is always one."""
        return self[:] if dtype is None else self[:].astype(dtype)


def _release_pages(rows: FloatArray) -> None:
    """Tell the kernel that a map's pages are not needed; reading them again is no error."""
    mapped = rows.base if isinstance(rows, np.memmap) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


VectorRows = FloatArray | ShardedVectors
"""Rows (N, D) of float32: an array, a memory map, or shards of them; read when asked for."""


def read_chunks(vectors: VectorRows, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, FloatArray]]:
    """The first row's number and the rows themselves, `rows` at a time, in order."""
    for start in range(0, len(vectors), rows):
        # A copy, since a map of a file is read-only, which torch warns of.
        yield start, np.array(vectors[start : start + rows], dtype=np.float32)


def write_shards(
    chunks: Iterable[FloatArray], folder: Path, shard_bytes: int = SHARD_BYTES
) -> tuple[int, int]:
    """Write chunks (n, D) of rows into shards `embeddings-00000.safetensors`, ...; rows and width.

    No more than one shard, of about `shard_bytes`, is held in memory.
    """
    held: list[FloatArray] = []
    n_held = n_shards = n_rows = width = 0
    for chunk in chunks:
        width, taken = chunk.shape[1], 0
        shard_rows = max(1, shard_bytes // (width * np.float32().itemsize))
        while taken < len(chunk):
            part = chunk[taken : taken + shard_rows - n_held]
            held.append(part)
            n_held += len(part)
            taken += len(part)
            if n_held == shard_rows:
                _write_shard(held, folder, n_shards)
                n_shards, n_rows, n_held, held = n_shards + 1, n_rows + n_held, 0, []
    if held:
        _write_shard(held, folder, n_shards)
    return n_rows + n_held, width


def _write_shard(held: list[FloatArray], folder: Path, number: int) -> None:
    rows = np.ascontiguousarray(np.concatenate(held), dtype=np.float32)
    save_file({VECTORS_NAME: rows}, folder / f"{VECTORS_NAME}-{number:05d}.safetensors")


def open_shards(folder: Path) -> ShardedVectors:
    """The rows of all shards in a folder, memory-mapped.

    Raises:
        ArtifactError: no shard, or one that does not hold float32 rows.
    """
    paths = sorted(folder.glob(f"{VECTORS_NAME}*.safetensors"))
    if not paths:
        raise ArtifactError(f"{folder} holds no {VECTORS_NAME}-*.safetensors; embed again")
    shards = [map_tensor(path, VECTORS_NAME) for path in paths]
    widths = {shard.shape[1] for shard in shards}
    if len(widths) > 1:
        raise ArtifactError(f"the shards in {folder} differ in width ({widths}); embed again")
    return ShardedVectors(shards)


def map_tensor(path: Path, name: str) -> FloatArray:
    """A float32 matrix of a safetensors file as a memory map.

    Source: the safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

    Raises:
        ArtifactError: no such tensor, another type, or a damaged file.
    """
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(_HEADER_BYTES), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(size))
        entry = header[name]
        shape, begin = entry["shape"], entry["data_offsets"][0]
        if entry["dtype"] != "F32" or len(shape) != 2:  # noqa: PLR2004 - rows and width
            raise ArtifactError(f"{path}: {name} must be rows of F32, not {entry['dtype']} {shape}")
        offset = _HEADER_BYTES + size + begin
        return np.memmap(path, np.float32, mode="r", offset=offset, shape=(shape[0], shape[1]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read as vectors: {error}; embed again") from error

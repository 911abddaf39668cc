"""Shards of vectors: written, mapped, read in any order, and let go of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genrec.errors import ArtifactError
from genrec.tokenizers.vectors import (
    ShardedVectors,
    map_tensor,
    open_shards,
    read_chunks,
    write_shards,
)

ROWS = np.arange(70, dtype=np.float32).reshape(10, 7)


@pytest.fixture
def sharded(tmp_path: Path) -> ShardedVectors:
    write_shards([ROWS[:5], ROWS[5:6], ROWS[6:]], tmp_path, shard_bytes=4 * 7 * 4)
    found = open_shards(tmp_path)
    assert isinstance(found, ShardedVectors)
    return found


def test_shards_hold_what_was_written(sharded: ShardedVectors, tmp_path: Path) -> None:
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"embeddings-0000{number}.safetensors" for number in range(3)]
    np.testing.assert_array_equal(load_file(tmp_path / names[1])["embeddings"], ROWS[4:8])
    assert sharded.shape == (10, 7)
    assert len(sharded) == 10


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(3, 9, 2), slice(-3, None), slice(4, 4), [9, 0, 4, 4, 3], [-1, -10], []],
)
def test_rows_come_in_the_order_asked_for(sharded: ShardedVectors, rows: object) -> None:
    chosen = rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(sharded[chosen], ROWS[chosen])  # type: ignore[index]
    assert sharded[chosen].dtype == np.float32  # type: ignore[index]


def test_one_shard_reads_as_several_do(tmp_path: Path) -> None:
    assert write_shards([ROWS], tmp_path) == (10, 7)
    np.testing.assert_array_equal(open_shards(tmp_path), ROWS)


def test_numpy_takes_all_rows_at_once(sharded: ShardedVectors) -> None:
    assert float(np.mean(sharded)) == ROWS.mean()
    wide = np.asarray(sharded, dtype=np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, ROWS)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_chunks_are_all_rows_in_order(sharded: ShardedVectors, rows: int) -> None:
    starts, chunks = zip(*read_chunks(sharded, rows), strict=True)
    assert list(starts) == list(range(0, 10, rows))
    np.testing.assert_array_equal(np.concatenate(chunks), ROWS)
    chunks[0][:] = 0  # a copy: neither the file nor the next reader sees it
    np.testing.assert_array_equal(sharded[:], ROWS)


def test_arrays_in_memory_make_shards_too() -> None:
    held = ShardedVectors([ROWS[:3], ROWS[3:]])
    np.testing.assert_array_equal(held[:], ROWS)


_MEASURE = """
import sys
from pathlib import Path
import numpy as np
from genrec.tokenizers.vectors import open_shards, read_chunks

def read_resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

vectors = open_shards(Path(sys.argv[1]))
generator = np.random.default_rng(0)
before = read_resident()
total = sum(float(chunk.sum()) for _, chunk in read_chunks(vectors, 1024))
some = generator.permutation(len(vectors))
total += sum(float(vectors[part].sum()) for part in np.array_split(some, 16))
print(read_resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's proc(5)")
def test_a_pass_over_a_file_takes_little_memory(tmp_path: Path) -> None:
    rows = np.ones((4096, 1024), dtype=np.float32)
    write_shards([rows] * 8, tmp_path, shard_bytes=10_000 * 4096)
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * rows.nbytes  # half of the file


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no embeddings-\*\.safetensors; embed again"):
        open_shards(tmp_path)


def test_shards_of_different_width_are_refused(tmp_path: Path) -> None:
    save_file({"embeddings": ROWS}, tmp_path / "embeddings-00000.safetensors")
    save_file({"embeddings": ROWS[:, :3].copy()}, tmp_path / "embeddings-00001.safetensors")
    with pytest.raises(ArtifactError, match=r"differ in width \(\{3, 7\}\); embed again"):
        open_shards(tmp_path)


@pytest.mark.parametrize("tensor", [ROWS.astype(np.float64), ROWS[0]])
def test_only_rows_of_float32_are_mapped(tensor: np.ndarray, tmp_path: Path) -> None:
    save_file({"embeddings": tensor.copy()}, tmp_path / "file")
    with pytest.raises(ArtifactError, match="embeddings must be rows of F32, not F"):
        map_tensor(tmp_path / "file", "embeddings")


@pytest.mark.parametrize("damage", ["garbage", "header", "cut", "name", "gone"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"embeddings": ROWS, "more": ROWS}, path)
    if damage == "gone":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "header":
        header = json.dumps({"embeddings": 3}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    name = "other" if damage == "name" else "embeddings"
    with pytest.raises(ArtifactError, match=r"file cannot be read as vectors: .*; embed again"):
        map_tensor(path, name)

"""The checkpoints of an unfinished run.

Owns how one comes to be whole, which of them can be gone on from, and which may go. Knows nothing
of models. A checkpoint is written beside the others under another name and renamed when every file
is on disk; one that goes is renamed first. So whatever is called `checkpoint-N` is whole, whenever
a run is killed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from genrec.errors import ModelError
from genrec.manifest import write_json

STATE_FILE = "trainer_state.json"
WRITING, LEAVING = ".writing", ".leaving"
_log = logging.getLogger(__name__)


def find_checkpoint(folder: Path, *, remove: bool = True) -> Path | None:
    """The last complete checkpoint below `folder`; what a kill left half written is removed.

    Args:
        folder: the Trainer's output directory.
        remove: delete the incomplete ones (one process of several does it).
    """
    if not folder.is_dir():
        return None
    for path in (*folder.glob(f"{WRITING}/checkpoint-*"), *folder.glob("checkpoint-*")):
        if remove and (path.parent.name == WRITING or not _is_complete(path)):
            _log.info("train: %s is half written and is removed", path.name)
            shutil.rmtree(path)
    if remove:
        for name in (WRITING, LEAVING):
            shutil.rmtree(folder / name, ignore_errors=True)
    return max(
        (path for path in folder.glob("checkpoint-*") if _is_complete(path)),
        key=_read_step,
        default=None,
    )


def publish_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of `step` under its own name, once all of it is on disk.

    Args:
        folder: the Trainer's output directory, which has it below `WRITING`.
        step: the update it was made after.
    """
    written = folder / WRITING / f"checkpoint-{step}"
    for path in written.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    final = folder / written.name
    if final.exists():  # of a run with other validations, gone back to an earlier checkpoint
        _remove(final)
    written.rename(final)
    return final


def drop_checkpoints(folder: Path, limit: int, best_step: int | None) -> None:
    """Remove the oldest checkpoints over `limit`, never the newest or the best one."""
    paths = sorted(folder.glob("checkpoint-*"), key=_read_step)
    kept = {path for path in paths if path == paths[-1] or _read_step(path) == best_step}
    for path in paths:
        if len(paths) <= max(limit, len(kept)):
            return
        if path not in kept:
            _remove(path)
            paths = [other for other in paths if other != path]


def point_best(checkpoint: Path) -> None:
    """Let a checkpoint name its best one where that lies now, should the run have been moved."""
    path = checkpoint / STATE_FILE
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["best_global_step"] is None:
        return
    best = str(checkpoint.parent / f"checkpoint-{state['best_global_step']}")
    if state["best_model_checkpoint"] != best and Path(best).is_dir():
        write_json(path, state | {"best_model_checkpoint": best})


def check_processes(checkpoint: Path, n_processes: int, *, sharded: bool) -> None:
    """Raise unless as many processes go on as made the checkpoint, in the same way.

    Raises:
        ModelError: their number changed, or whether they hold shards.
    """
    made = max(len(list(checkpoint.glob("rng_state*.pth"))), 1)
    was_sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    if (made, was_sharded) != (n_processes, sharded):
        ways = [" with FSDP" if flag else "" for flag in (was_sharded, sharded)]
        raise ModelError(
            f"the unfinished run in {checkpoint.parent} had {made} process(es){ways[0]}, but there "
            f"are {n_processes}{ways[1]} now, which would see other rows; go on as it was started, "
            f"or start over with --force after removing {checkpoint.parent}"
        )


def _remove(path: Path) -> None:
    leaving = path.parent / LEAVING
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving)


def _read_step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _is_complete(path: Path) -> bool:
    # A checkpoint of genrec 0.1.0 was not renamed, but its state was written last.
    try:
        json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True

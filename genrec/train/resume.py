"""The checkpoints of an unfinished run.

Owns which of them can be gone on from. Knows nothing of models.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

STATE_FILE = "trainer_state.json"
_log = logging.getLogger(__name__)


def find_checkpoint(folder: Path, *, remove: bool = True) -> Path | None:
    """The last complete checkpoint below `folder`; what a kill left half written is removed.

    Args:
        folder: the Trainer's output directory.
        remove: delete the incomplete ones (one process of several does it).
    """
    if not folder.is_dir():
        return None
    for path in folder.glob("checkpoint-*"):
        if remove and not _is_complete(path):
            _log.info("train: %s is half written and is removed", path.name)
            shutil.rmtree(path)
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(path: Path) -> bool:
    # Trainer writes its state last, but not atomically.
    try:
        json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True

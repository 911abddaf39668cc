"""How much memory this process has taken at most.

Owns the reading and the resetting of that figure. Knows nothing of what was done.
"""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

_log = logging.getLogger(__name__)


def reset_peak() -> None:
    """Let the kernel count the peak resident size anew (Linux; see proc(5), clear_refs)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5", encoding="ascii")
        except OSError:  # a hardened kernel: the peak then counts from the start of the process
            _log.debug("the kernel refuses to reset the peak memory count")


def read_peak() -> int:
    """The highest resident size in bytes since the last reset, or since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

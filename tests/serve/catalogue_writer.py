"""A process that writes versions as fast as it can until it is killed; tests start it.

Prints each version once it is acknowledged. What a version holds follows from its number.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genrec.serve.catalogue_state import Change, Holding, StoredItem, VersionInfo
from genrec.serve.journal import Journal
from genrec.serve.version_log import Base, Pace, VersionLog

OWN = tuple(f"own{number}" for number in range(5))
PACE = Pace(changes=7, segments=3)  # segments begin often, so that kills meet them


def open_log(folder: Path) -> VersionLog:
    """The versions in a directory, locked until its process ends."""
    return VersionLog(Journal.open(folder), Base("c" * 64, len(OWN), OWN.__contains__), PACE)


def make_change(version: int) -> Change:
    """The change that makes a version, of a few bytes or a few pages."""
    codes = (version // 256, version % 256)
    item = StoredItem(f"item{version}", f"title {version}", "", "x" * (version * 977 % 9000), codes)
    gone = (f"item{version - 3}",) if version > 4 else ()
    return Change(items=(item,), removed=gone, off=(item.item_id,) if version % 2 else ())


def hold_all(version: int) -> Holding:
    """What a version holds."""
    held = Holding()
    for earlier in range(2, version + 1):
        held.apply(make_change(earlier), OWN.__contains__)
    return held


def main(folder: Path) -> None:
    """Write until killed."""
    log = open_log(folder)
    while True:
        version = log.versions[-1].version + 1
        log.append(VersionInfo(version, "now", "add", 5), make_change(version))
        sys.stdout.write(f"{version}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

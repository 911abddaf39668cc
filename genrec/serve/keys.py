"""API keys: made once, kept as hashes, compared in constant time.

Owns the file of hashes and what a key looks like. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from genrec.errors import DataError, join_problems

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_PARTS = 2


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that are let in: a name and a hash each. Empty, it asks nobody for a key."""

    hashes: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any key."""
        return bool(self.hashes)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The keys in a file: a line each of a name and `sha256:HEX`; `#` begins a comment.

        Raises:
            DataError: no such file, or lines that are no keys; it lists them all.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the key file {path} cannot be read: {error}; make it with "
                f"`genrec serve-key {path}`"
            ) from error
        found, problems = [], []
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != _PARTS or not _HASH.fullmatch(words[1]):
                problems.append(
                    f"line {number} is not NAME sha256:HEX; a key itself never stands in this file"
                )
            else:
                found.append((words[0], words[1]))
        if problems:
            raise DataError(join_problems(str(path), problems))
        if not found:
            raise DataError(f"{path} holds no key; make one with `genrec serve-key {path}`")
        return cls(tuple(found))

    def find_owner(self, key: str) -> str | None:
        """The name of a key's owner; None for a key that is not let in.

        Every hash is compared in full, so that the time taken tells nothing.
        """
        given = hash_key(key)
        owner = None
        for name, kept in self.hashes:
            if hmac.compare_digest(given.encode(), kept.encode()):
                owner = name
        return owner


def hash_key(key: str) -> str:
    """What is kept of a key. A key holds 256 random bits, so that a fast hash is enough."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def add_key(path: Path, name: str) -> str:
    """A new key, whose hash is appended to a file that only its owner may read.

    Raises:
        DataError: a name that cannot stand in the file, or a file that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"a key's name is 1 to 64 letters, digits or . _ @ -, and {name!r} is not; "
            f"pass --name with another"
        )
    key = f"gr_{secrets.token_urlsafe(32)}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{name} {hash_key(key)}\n")
    except OSError as error:
        raise DataError(f"the key file {path} cannot be written: {error}") from error
    return key

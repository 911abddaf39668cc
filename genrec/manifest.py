"""The record that makes a directory an artefact.

Owns `manifest.json`: schema version, step, resolved recipe, seed, library versions, the sha256 of
every file, and the digests of the inputs. Knows neither a step's content nor how it is written.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import ArtifactError
from genrec.recipe import Recipe, hash_values, recipe_digest

SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial.json"
LIBRARIES = ("genrec", "torch", "transformers", "peft", "trl", "datasets", "polars", "scikit-learn")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an artefact as the manifest knows it."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says; `digest` identifies the content, wherever it was made."""

    step: str
    recipe: dict[str, Any]
    recipe_digest: str
    seed: int
    inputs: dict[str, dict[str, str]]
    files: dict[str, FileRecord]
    facts: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    created: str
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """The sha256 over step, recipe, inputs and files; not over times, paths and versions."""
        return hash_values(
            {
                "schema": self.schema,
                "step": self.step,
                "recipe": self.recipe_digest,
                "inputs": {name: record["digest"] for name, record in self.inputs.items()},
                "files": {name: record.sha256 for name, record in self.files.items()},
            }
        )


def describe_folder(
    out: Path,
    step: str,
    recipe: Recipe,
    inputs: dict[str, dict[str, str]],
    facts: dict[str, Any],
    seconds: float,
) -> Manifest:
    """The manifest of the files that lie in `out` now."""
    files = {
        path.relative_to(out).as_posix(): FileRecord(hash_file(path), path.stat().st_size)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path not in (out / MANIFEST, out / PARTIAL)
    }
    return Manifest(
        step=step,
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe_digest(recipe),
        seed=recipe.seed,
        inputs=inputs,
        files=files,
        facts=json.loads(json.dumps(facts)),
        versions=find_versions(),
        seconds=round(seconds, 3),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def find_versions() -> dict[str, str]:
    """The installed versions of the libraries that decide a result."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hash_file(path: Path) -> str:
    """The sha256 of a file, as hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the new one, never half."""
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where it is damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def read_manifest(path: Path, what: str) -> Manifest:
    """The manifest in a directory; `what` names the directory in messages.

    Raises:
        ArtifactError: no directory, no manifest, another schema, damaged or edited.
    """
    if not path.is_dir():
        raise ArtifactError(
            f"{what} {path} does not exist; check the path, or run the step that makes it"
        )
    file = path / MANIFEST
    if not file.exists():
        state = (
            "is half written (a run was stopped)" if (path / PARTIAL).exists() else "is no artefact"
        )
        raise ArtifactError(
            f"{path} {state}: it has no {MANIFEST}, which is written last; "
            f"run the step that makes it"
        )
    values = read_json(file)
    if values.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{what} {path} has manifest schema {values.get('schema')!r}, "
            f"but this genrec reads {SCHEMA}; make it again with this version"
        )
    try:
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        recorded = values.pop("digest")
        manifest = Manifest(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} is damaged ({error}); make the {what} again") from error
    if manifest.digest != recorded:
        raise ArtifactError(f"{file} was edited: its digest does not match; make the {what} again")
    return manifest


def find_changes(path: Path, manifest: Manifest, verify: bool) -> Iterator[str]:
    """One line for each file that is not what the manifest says."""
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            yield f"{name}: missing"
        elif file.stat().st_size != record.size_bytes:
            yield f"{name}: {file.stat().st_size} bytes, not {record.size_bytes}"
        elif verify and hash_file(file) != record.sha256:
            yield f"{name}: content changed (sha256 differs)"

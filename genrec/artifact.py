"""A step's output directory, written and read.

Owns how an artefact comes to be: the files first, `manifest.json` last, so that its existence means
"complete"; a run that is stopped leaves nothing that looks finished. Knows no step's content.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genrec.errors import ArtifactError, GenrecError, join_problems
from genrec.manifest import (
    MANIFEST,
    PARTIAL,
    Manifest,
    describe_folder,
    find_changes,
    read_json,
    read_manifest,
    write_json,
)
from genrec.recipe import Recipe, hash_values, recipe_digest

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artefact on disk."""

    path: Path
    manifest: Manifest


class ArtifactWriter:
    """A step's directory while it is being written, as a context manager.

    Files go below `path`, small JSON facts into `facts`; made by `write_artifact`.
    """

    def __init__(
        self,
        path: Path,
        step: str,
        recipe: Recipe,
        inputs: Mapping[str, Artifact],
        resumable: bool,
        run: Recipe,
    ) -> None:
        """Describe what will be written; nothing is touched before the block begins."""
        self.path = path
        self.resumed = False
        self.facts: dict[str, Any] = {}
        self._step = step
        self._recipe = recipe
        self._inputs = {name: _input_record(artifact) for name, artifact in inputs.items()}
        self._resumable = resumable
        self._run = run
        self._started = 0.0
        self._artifact: Artifact | None = None

    @property
    def artifact(self) -> Artifact:
        """The finished artefact, once the block has ended well."""
        assert self._artifact is not None, "the artefact is finished when its block ends"
        return self._artifact

    def __enter__(self) -> ArtifactWriter:
        """Clear the directory, or keep the partial run that can be continued."""
        self._started = time.monotonic()
        key = _run_key(self._step, self._run, self._inputs)
        try:
            self.resumed = _prepare_folder(self.path, self._step, key, self._resumable)
        except OSError as error:
            raise self._explain_fault(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Write the manifest if all went well; otherwise leave nothing that looks finished."""
        if error is None:
            try:
                self._finish()
            except OSError as fault:
                self._abandon()
                raise self._explain_fault(fault) from fault
            return
        self._abandon()
        if _is_disk_full(error):
            raise self._explain_fault(error) from error

    def _finish(self) -> None:
        seconds = time.monotonic() - self._started
        manifest = describe_folder(
            self.path, self._step, self._recipe, self._inputs, self.facts, seconds
        )
        write_json(self.path / MANIFEST, asdict(manifest) | {"digest": manifest.digest})
        (self.path / PARTIAL).unlink(missing_ok=True)
        self._artifact = Artifact(self.path, manifest)
        _log.info("%s: %s is complete (%.1f s)", self._step, self.path, manifest.seconds)

    def _abandon(self) -> None:
        if not self._resumable:
            _clear_folder(self.path)

    def _explain_fault(self, error: BaseException) -> ArtifactError:
        if _is_disk_full(error):
            return ArtifactError(
                f"the disk is full: writing the {self._step} artefact to {self.path} failed; "
                f"nothing there is marked as finished. Free some space or choose another --out, "
                f"and run the same command again"
            )
        return ArtifactError(
            f"the {self._step} artefact cannot be written to {self.path}: {error}; "
            f"check the path and its permissions, or choose another --out"
        )


def write_artifact(
    out: str | Path,
    *,
    step: str,
    recipe: Recipe,
    inputs: Mapping[str, Artifact] | None = None,
    resumable: bool = False,
    run: Recipe | None = None,
) -> ArtifactWriter:
    """A context manager that writes a step's directory, the manifest when its block ends.

    Whatever a former run of another recipe left in `out` is removed; a partial run of the same
    recipe and inputs is kept and continued if the step is `resumable`. The log says which.

    Args:
        out: the directory; made if missing.
        step: the step's name.
        recipe: the resolved recipe.
        inputs: the artefacts that were read, by role.
        resumable: whether the step can go on from a partial run's files.
        run: what tells a partial run from another besides its inputs; the recipe if unset.

    Raises:
        ArtifactError: `out` holds foreign files or cannot be written, or the disk is full.
    """
    return ArtifactWriter(Path(out), step, recipe, inputs or {}, resumable, run or recipe)


def _run_key(step: str, recipe: Recipe, inputs: Mapping[str, Mapping[str, str]]) -> str:
    digests = {name: record["digest"] for name, record in inputs.items()}
    return hash_values({"step": step, "recipe": recipe_digest(recipe), "inputs": digests})


def _input_record(artifact: Artifact) -> dict[str, str]:
    return {"path": str(artifact.path.resolve()), "digest": artifact.manifest.digest}


def _prepare_folder(out: Path, step: str, key: str, resumable: bool) -> bool:
    """Whether a partial run is continued; the folder is ready to be written to either way."""
    refuse_foreign(out)
    partial = out / PARTIAL
    if partial.exists():
        same = read_json(partial).get("key") == key
        if same and resumable:
            (out / MANIFEST).unlink(missing_ok=True)
            _log.info("%s: continuing the unfinished run in %s", step, out)
            return True
        _log.info("%s: %s holds an unfinished run; starting clean", step, out)
    _clear_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(partial, {"step": step, "key": key})
    return False


def refuse_foreign(out: Path) -> None:
    """Raise unless `out` is missing, empty, or was written by genrec.

    Raises:
        ArtifactError: it is a file, or holds files that genrec did not write.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file; an artefact needs a directory, choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if (out / MANIFEST).exists() or (out / PARTIAL).exists():
            return
        raise ArtifactError(
            f"{out} holds files that genrec did not write, and an artefact's directory is cleared "
            f"before it is written; choose an empty or new directory"
        )


def _clear_folder(out: Path) -> None:
    if not out.is_dir():
        return
    # The manifest goes first, so that a kill in the middle leaves nothing that looks finished.
    (out / MANIFEST).unlink(missing_ok=True)
    for child in out.iterdir():
        if child.name == PARTIAL:
            continue
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    (out / PARTIAL).unlink(missing_ok=True)


def _is_disk_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_FULL:
            return True
        if not isinstance(seen, GenrecError) and "No space left on device" in str(seen):
            return True  # safetensors, polars and arrow wrap the errno in their own exceptions
        seen = seen.__cause__ or seen.__context__
    return False


def load_artifact(path: str | Path, *, step: str | None = None, verify: bool = True) -> Artifact:
    """The complete artefact at `path`.

    Args:
        path: the directory.
        step: the step that must have made it; None accepts any.
        verify: compare every file's sha256; otherwise only its existence and size.

    Raises:
        ArtifactError: missing, half written, of another schema or step, or changed since.
    """
    path = Path(path)
    what = f"{step} artefact" if step else "artefact"
    manifest = read_manifest(path, what)
    if step is not None and manifest.step != step:
        raise ArtifactError(
            f"{path} is the output of `genrec {manifest.step}`, "
            f"but that of `genrec {step}` is needed here"
        )
    problems = list(find_changes(path, manifest, verify))
    if problems:
        subject = (
            f"{what} {path} is not what its manifest says; make it again, or restore the files"
        )
        raise ArtifactError(join_problems(subject, problems))
    return Artifact(path, manifest)


def find_current(
    out: str | Path, *, step: str, recipe: Recipe, inputs: Mapping[str, Artifact]
) -> Artifact | None:
    """The artefact in `out`, if it is this step's output for this recipe and these inputs."""
    try:
        artifact = load_artifact(out, step=step)
    except ArtifactError:
        return None
    digests = {name: record["digest"] for name, record in artifact.manifest.inputs.items()}
    wanted = {name: artifact.manifest.digest for name, artifact in inputs.items()}
    same_recipe = artifact.manifest.recipe_digest == recipe_digest(recipe)
    return artifact if same_recipe and digests == wanted else None


def check_input(artifact: Artifact, role: str, expected: Artifact) -> None:
    """Raise unless `artifact` was made from `expected`.

    Raises:
        ArtifactError: it names another input under that role, or none.
    """
    record = artifact.manifest.inputs.get(role)
    if record is None or record["digest"] != expected.manifest.digest:
        made_from = record["path"] if record else "none"
        raise ArtifactError(
            f"{artifact.path} was made from another {role} artefact ({made_from}), not from "
            f"{expected.path}; run the steps in order, or `genrec run`"
        )

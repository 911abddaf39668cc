"""Artefacts: written whole or not at all, and refused when they are not what they say."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from genrec.artifact import (
    Artifact,
    check_input,
    find_current,
    load_artifact,
    refuse_foreign,
    write_artifact,
)
from genrec.errors import ArtifactError, DataError
from genrec.manifest import MANIFEST, PARTIAL
from genrec.recipe import Recipe


class Small(Recipe):
    epochs: int = 1


def make_artifact(out: Path, *, step: str = "data", recipe: Recipe | None = None) -> Artifact:
    with write_artifact(out, step=step, recipe=recipe or Small()) as work:
        (work.path / "items").mkdir()
        (work.path / "items" / "a.txt").write_text("hello")
        work.facts["users"] = 3
    return work.artifact


def edit_manifest(out: Path, **values: object) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | values))


def test_round_trip_keeps_files_facts_and_recipe(tmp_path: Path) -> None:
    made = make_artifact(tmp_path / "data")
    loaded = load_artifact(tmp_path / "data", step="data")
    assert loaded == made
    assert loaded.manifest.facts == {"users": 3}
    assert loaded.manifest.recipe == {"seed": 0, "epochs": 1}
    assert list(loaded.manifest.files) == ["items/a.txt"]
    assert loaded.manifest.versions["polars"]
    assert not (tmp_path / "data" / PARTIAL).exists()


def test_digest_depends_on_content_not_on_place_or_time(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b")
    assert first.manifest.digest == second.manifest.digest
    other = make_artifact(tmp_path / "c", recipe=Small(epochs=2))
    assert other.manifest.digest != first.manifest.digest


def test_a_fault_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with (
        pytest.raises(DataError, match="bad"),
        write_artifact(out, step="data", recipe=Small()) as work,
    ):
        (work.path / "half.txt").write_text("x")
        assert not (out / MANIFEST).exists()
        raise DataError("bad")
    assert list(out.iterdir()) == []


def test_a_resumable_step_goes_on_with_the_same_recipe_only(tmp_path: Path) -> None:
    out = tmp_path / "model"

    def stop_midway(recipe: Small) -> bool:
        resumed = False
        with (
            pytest.raises(KeyboardInterrupt),
            write_artifact(out, step="train", recipe=recipe, resumable=True) as work,
        ):
            resumed = work.resumed
            (work.path / "checkpoint.txt").write_text("x")
            raise KeyboardInterrupt
        return resumed

    assert not stop_midway(Small())
    assert stop_midway(Small())
    assert not stop_midway(Small(epochs=2))
    with pytest.raises(ArtifactError, match=r"half written \(a run was stopped\)"):
        load_artifact(out)
    with write_artifact(out, step="train", recipe=Small(epochs=2), resumable=True) as work:
        assert work.resumed
        assert (work.path / "checkpoint.txt").exists()
    assert "checkpoint.txt" in work.artifact.manifest.files


def test_a_step_that_cannot_resume_starts_clean(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    (out / PARTIAL).write_text("{}")
    (out / "left.txt").write_text("x")
    (out / "left").mkdir()
    make_artifact(out)
    assert sorted(path.name for path in out.iterdir()) == ["items", MANIFEST]


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="holds files that genrec did not write"):
        make_artifact(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    with pytest.raises(ArtifactError, match="is a file; an artefact needs a directory"):
        refuse_foreign(tmp_path / "thesis.txt")


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"data artefact .*nowhere does not exist"):
        load_artifact(tmp_path / "nowhere", step="data")
    with pytest.raises(ArtifactError, match="is no artefact: it has no manifest"):
        load_artifact(tmp_path)


def test_another_step_is_refused(tmp_path: Path) -> None:
    make_artifact(tmp_path / "data")
    with pytest.raises(ArtifactError, match=r"output of `genrec data`, but that of `genrec train`"):
        load_artifact(tmp_path / "data", step="train")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    make_artifact(tmp_path / "data")
    edit_manifest(tmp_path / "data", schema=99)
    with pytest.raises(ArtifactError, match="has manifest schema 99, but this genrec reads 1"):
        load_artifact(tmp_path / "data")


def test_an_edited_or_damaged_manifest_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    make_artifact(out)
    edit_manifest(out, step="train")
    with pytest.raises(ArtifactError, match="was edited: its digest does not match"):
        load_artifact(out)
    edit_manifest(out, files=3)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_artifact(out)
    (out / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="manifest schema None"):
        load_artifact(out)


def test_changed_files_are_all_named(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with write_artifact(out, step="data", recipe=Small()) as work:
        for name in ("same", "longer", "gone"):
            (work.path / name).write_text(name)
    (out / "same").write_text("SAME")
    (out / "longer").write_text("much longer")
    (out / "gone").unlink()
    with pytest.raises(ArtifactError) as caught:
        load_artifact(out)
    message = str(caught.value)
    assert "3 problems" in message
    assert "same: content changed" in message
    assert "longer: 11 bytes, not 6" in message
    assert "gone: missing" in message


def test_sizes_alone_can_be_checked(tmp_path: Path) -> None:
    make_artifact(tmp_path / "data")
    (tmp_path / "data" / "items" / "a.txt").write_text("HELLO")
    assert load_artifact(tmp_path / "data", verify=False)


def test_current_means_same_recipe_inputs_and_files(tmp_path: Path) -> None:
    data = make_artifact(tmp_path / "data")
    out = tmp_path / "embeddings"
    with write_artifact(out, step="embed", recipe=Small(), inputs={"data": data}) as work:
        (work.path / "x").write_text("x")
    request = {"step": "embed", "inputs": {"data": data}}
    assert find_current(out, recipe=Small(), **request) == work.artifact  # type: ignore[arg-type]
    assert not find_current(out, recipe=Small(epochs=2), **request)  # type: ignore[arg-type]
    other = make_artifact(tmp_path / "other", recipe=Small(epochs=9))
    assert not find_current(out, step="embed", recipe=Small(), inputs={"data": other})
    (out / "x").write_text("y")
    assert not find_current(out, recipe=Small(), **request)  # type: ignore[arg-type]


def test_inputs_must_be_those_it_was_made_from(tmp_path: Path) -> None:
    data = make_artifact(tmp_path / "data")
    with write_artifact(
        tmp_path / "model", step="train", recipe=Small(), inputs={"data": data}
    ) as work:
        pass
    check_input(work.artifact, "data", data)
    other = make_artifact(tmp_path / "other", recipe=Small(epochs=9))
    with pytest.raises(ArtifactError, match="was made from another data artefact"):
        check_input(work.artifact, "data", other)
    with pytest.raises(ArtifactError, match=r"another tokenize artefact \(none\)"):
        check_input(work.artifact, "tokenize", other)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_explained_and_nothing_looks_finished(
    tmp_path: Path, fault: Exception
) -> None:
    out = tmp_path / "model"
    with pytest.raises(ArtifactError, match="the disk is full: writing the train artefact"):
        with write_artifact(out, step="train", recipe=Small()) as work:
            (work.path / "weights").write_text("x")
            raise fault
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_at_the_manifest_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "model"
    with pytest.raises(ArtifactError, match="the disk is full"):
        with write_artifact(out, step="train", recipe=Small()) as work:
            (work.path / "weights").write_text("x")
            monkeypatch.setattr("genrec.manifest.os.fsync", fill)
    assert not (out / MANIFEST).exists()


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written to"):
        with write_artifact(tmp_path / "file" / "below", step="data", recipe=Small()):
            pass

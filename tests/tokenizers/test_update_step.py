"""New versions as artefacts, and the commands that make them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from genrec.artifact import load_artifact, write_artifact
from genrec.cli import app
from genrec.errors import ArtifactError, DataError
from genrec.manifest import hash_file
from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import make_tokenizer
from genrec.tokenizers.update_step import (
    add_to_artifact,
    read_item_ids,
    remove_from_artifact,
)
from genrec.tokenizers.vectors import write_shards

from .conftest import plant_clusters

VECTORS = plant_clusters(80, n_clusters=5, dimensions=4, noise=0.05)
RECIPE = TokenizeRecipe(quantizer="rqkmeans", codebook_sizes=(4, 6, 8))
runner = CliRunner()


def embed(
    out: Path, rows: range, encoder: str = "sentence-transformers", turn: bool = False
) -> Path:
    recipe = EmbedRecipe(encoder=encoder)
    with write_artifact(out, step="embed", recipe=recipe) as work:
        vectors = VECTORS[list(rows)]
        write_shards([-vectors if turn else vectors], work.path)
        pl.DataFrame({"item_id": [f"i{row}" for row in rows]}).write_parquet(
            work.path / "items.parquet"
        )
    return out


@pytest.fixture
def old(tmp_path: Path) -> Path:
    source = embed(tmp_path / "embeddings", range(40), encoder="lsa")
    make_tokenizer(RECIPE, source, tmp_path / "old")
    return tmp_path / "old"


def read_quality(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quality.json").read_text(encoding="utf-8"))


def test_a_version_is_a_complete_artefact(old: Path, tmp_path: Path) -> None:
    new = embed(tmp_path / "new", range(40, 60))
    artifact, changes = add_to_artifact(old, tmp_path / "out", embeddings=new)
    manifest = load_artifact(tmp_path / "out", step="tokenize").manifest
    before = load_artifact(old).manifest
    assert manifest.recipe == before.recipe
    assert {role: record["digest"] for role, record in manifest.inputs.items()} == {
        "tokenize": before.digest,
        "embed": load_artifact(new).manifest.digest,
    }
    assert manifest.facts["items"] == 60 and manifest.facts["version"] == 2
    assert manifest.facts["changes"]["added"] == 20
    tokenizer = SemanticIdTokenizer.from_pretrained(artifact.path)
    assert tokenizer.lineage.parent == before.digest
    assert tokenizer.item_ids[40:] == changes.added
    record = json.loads((tmp_path / "out" / "changes.json").read_text())
    assert record["version"] == 2 and record["parent"] == before.digest
    assert record["added"] == list(changes.added) and record["moved"] == []
    assert (tmp_path / "out" / "history.json").read_bytes() == (old / "history.json").read_bytes()


def test_removed_codes_stay_reserved_on_disk(old: Path, tmp_path: Path) -> None:
    first = SemanticIdTokenizer.from_pretrained(old)
    _, changes = remove_from_artifact(old, ["i3"], tmp_path / "two")
    assert changes.removed == ("i3",)
    two = SemanticIdTokenizer.from_pretrained(tmp_path / "two")
    assert two.lineage.retired_codes.tolist() == [first.codes[3].tolist()]
    assert read_quality(tmp_path / "two")["items"] == 39
    again = embed(tmp_path / "again", range(3, 4), encoder="sentence-transformers")
    _, changes = add_to_artifact(tmp_path / "two", tmp_path / "three", embeddings=again)
    assert changes.returned == ("i3",)
    three = SemanticIdTokenizer.from_pretrained(tmp_path / "three")
    assert three.encode(["i3"]) == first.encode(["i3"])
    assert three.lineage.version == 3 and three.lineage.retired_ids == ()


def test_the_summary_is_measured_anew_where_every_item_has_a_vector(
    old: Path, tmp_path: Path
) -> None:
    every = embed(tmp_path / "every", range(60))
    add_to_artifact(old, tmp_path / "full", embeddings=every, skip_known=True)
    part = embed(tmp_path / "part", range(40, 60))
    add_to_artifact(old, tmp_path / "partly", embeddings=part)
    full, partly, before = map(read_quality, (tmp_path / "full", tmp_path / "partly", old))
    assert "carried" not in full
    assert full["reconstruction"] != before["reconstruction"]
    assert partly["reconstruction"] == before["reconstruction"]
    assert partly["carried"]["from_version"] == 1
    assert partly["added"]["items"] == 20
    assert 0.5 < partly["added"]["reconstruction"]["after"]["cosine"] <= 1
    # Old items do not move, so the two ways to the cost of uniqueness agree.
    for name in ("items", "added_distance_total", "added_distance_mean"):
        assert partly["moved"][name] == pytest.approx(full["moved"][name], rel=1e-5, abs=1e-6)
    assert partly["levels"] == full["levels"]
    remove_from_artifact(tmp_path / "partly", ["i0"], tmp_path / "less")
    assert read_quality(tmp_path / "less")["carried"]["from_version"] == 1


def test_known_items_are_an_error_or_passed_over(old: Path, tmp_path: Path) -> None:
    new = embed(tmp_path / "new", range(38, 42))
    with pytest.raises(DataError, match=r"--skip-known\): 2 problems\n.*'i38'.*\n.*'i39'"):
        add_to_artifact(old, tmp_path / "out", embeddings=new)
    assert not (tmp_path / "out").exists()
    _, changes = add_to_artifact(old, tmp_path / "out", embeddings=new, skip_known=True)
    assert changes.added == ("i40", "i41")
    known = embed(tmp_path / "known", range(4))
    with pytest.raises(DataError, match="there is nothing to add"):
        add_to_artifact(old, tmp_path / "other", embeddings=known, skip_known=True)


def test_the_tokenizer_itself_is_never_written_to(old: Path, tmp_path: Path) -> None:
    new = embed(tmp_path / "new", range(40, 42))
    with pytest.raises(ArtifactError, match="is the tokenizer itself"):
        add_to_artifact(old, old / ".." / "old", embeddings=new)
    with pytest.raises(ArtifactError, match="choose another --out"):
        remove_from_artifact(old, ["i1"], old)


def test_vectors_of_another_space_are_refused(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = embed(tmp_path / "turned", range(60), turn=True)
    with pytest.raises(DataError, match=r"of 40 items .* only .*% would get .* \(at least 50%"):
        add_to_artifact(old, tmp_path / "out", embeddings=turned, skip_known=True)
    unknown = embed(tmp_path / "unknown", range(40, 50), encoder="lsa")
    with pytest.raises(DataError, match=r"made by lsa.*no known item to compare.*--force-space"):
        add_to_artifact(old, tmp_path / "out", embeddings=unknown)
    with caplog.at_level(logging.WARNING):
        add_to_artifact(old, tmp_path / "out", embeddings=unknown, force_space=True)
    assert "the new codes may mean nothing" in caplog.text
    # Enough known items that keep their codes prove the space, whatever the encoder.
    mixed = embed(tmp_path / "mixed", range(30, 50), encoder="lsa")
    _, changes = add_to_artifact(old, tmp_path / "fine", embeddings=mixed, skip_known=True)
    assert len(changes.added) == 10
    # And the very embeddings that it was fitted to need no proof.
    with pytest.raises(DataError, match="'i0' has a semantic ID"):
        add_to_artifact(old, tmp_path / "more", embeddings=tmp_path / "embeddings")


def test_a_saved_tokenizer_that_is_no_artefact_has_versions_too(old: Path, tmp_path: Path) -> None:
    SemanticIdTokenizer.from_pretrained(old).save_pretrained(tmp_path / "plain")
    artifact, _ = remove_from_artifact(tmp_path / "plain", ["i1"], tmp_path / "out")
    assert artifact.manifest.inputs == {}
    lineage = SemanticIdTokenizer.from_pretrained(tmp_path / "out").lineage
    assert lineage.parent == hash_file(tmp_path / "plain" / "config.json")


def test_item_ids_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("\ufeffi1\n\n  i2 \n", encoding="utf-8")
    assert read_item_ids(file) == ["i1", "i2"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8 file with one a line"):
        read_item_ids(file)
    with pytest.raises(DataError, match="cannot be read as a list"):
        read_item_ids(tmp_path / "missing.txt")


def test_the_commands_make_and_compare_versions(old: Path, tmp_path: Path) -> None:
    new = embed(tmp_path / "new", range(40, 50))
    two, three = tmp_path / "two", tmp_path / "three"
    done = runner.invoke(
        app, ["tokenize", "add", "--tokenizer", str(old), "--embeddings", str(new), "-o", str(two)]
    )
    assert done.exit_code == 0, done.output
    assert "version 2, 50 items" in " ".join(done.output.split())
    (tmp_path / "ids.txt").write_text("i5\n")
    arguments = ["--tokenizer", str(two), "i4", "--input", str(tmp_path / "ids.txt")]
    done = runner.invoke(app, ["tokenize", "remove", *arguments, "-o", str(three)])
    assert done.exit_code == 0, done.output
    file = tmp_path / "diff.json"
    done = runner.invoke(app, ["tokenize", "diff", str(old), str(three), "--json", str(file)])
    assert done.exit_code == 0, done.output
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if "│" in line}
    assert " 10 " in rows["added"] and "i40, i41" in rows["added"] and ", ..." in rows["added"]
    assert " 2 " in rows["removed"] and "i4, i5" in rows["removed"]
    counts = json.loads(file.read_text())["counts"]
    assert counts == {"added": 10, "removed": 2, "returned": 0, "reused": 0, "moved": 0}
    codes = [SemanticIdTokenizer.from_pretrained(path).codes for path in (old, three)]
    np.testing.assert_array_equal(np.delete(codes[0], [4, 5], axis=0), codes[1][:38])

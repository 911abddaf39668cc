"""Leaks through what the ids were made from: interactions or reviews that are held out here.

Owns following a tokenizer's manifests back to the data that its quantizer, or the embedding of
users before it, has read. Knows no quantizer's inside, only which ones read choices or reviews.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from genrec.artifact import Artifact, load_artifact
from genrec.data.dataset import Dataset, load_dataset
from genrec.errors import ArtifactError
from genrec.manifest import Manifest
from genrec.prompts.audit_time import Findings

READ_NO_CHOICES = frozenset(
    {"rqvae", "gmc", "fsq", "rqkmeans", "opq", "random", "title", "ulmrec-users", "imported"}
)
"""Quantizers that look at vectors, columns of items, or nothing. Any other one, a plug-in too, is
taken to read the interactions of the data that it was given."""

_Record = dict[str, str]


def audit_sources(dataset: Dataset, tokenizers: Mapping[str, Artifact]) -> Findings:
    """Whether the ids were made without any choice or review that is held out here.

    Data of another artefact may be read as long as no choice that it trains on is held out in this
    one; so a tokenizer of an earlier state of the data is fine.

    Args:
        dataset: the data that rows are made from.
        tokenizers: tokenizer artefacts by role.
    """
    found = Findings([], [], {"read_choices": [], "imported": []})
    for role, artifact in tokenizers.items():
        for manifest, where in _trace(artifact.manifest, artifact.path):
            _check_manifest(dataset, role, manifest, where, found)
    return found


def _trace(manifest: Manifest, where: Path) -> Iterator[tuple[Manifest, Path]]:
    """A manifest and those of the artefacts it was made from, data aside, as far as they exist."""
    yield manifest, where
    for role, record in manifest.inputs.items():
        before = _load_unchanged(record) if role != "data" else None
        if before is not None:
            yield from _trace(before.manifest, before.path)


def _load_unchanged(record: _Record) -> Artifact | None:
    try:
        artifact = load_artifact(record["path"], verify=False)
    except ArtifactError:
        return None
    return artifact if artifact.manifest.digest == record["digest"] else None


def _check_manifest(
    dataset: Dataset, role: str, manifest: Manifest, where: Path, found: Findings
) -> None:
    recipe = manifest.recipe
    if manifest.step == "embed":
        if recipe.get("subject") == "users":
            _check_read(dataset, "users' reviews", manifest, where, found)
        return
    quantizer = str(recipe.get("quantizer", "unknown"))
    if quantizer == "imported":
        found.facts["imported"].append(role)
        if role == "users":
            found.notes.append(
                f"{where} was imported: what its users' ids were made from cannot be checked"
            )
    if quantizer == "sequential" and recipe.get("sequential", {}).get("splits") == "all":
        found.faults.append(
            f"{where} numbers items along whole sequences (sequential.splits: all), held-out "
            f"choices included; make it with sequential.splits=train"
        )
    if quantizer == "letter" and recipe.get("letter", {}).get("factors"):
        found.notes.append(
            f"{where} was aligned with factors from a file ({recipe['letter']['factors']}): what "
            f"they were made from cannot be checked"
        )
    elif quantizer not in READ_NO_CHOICES and "data" in manifest.inputs:
        _check_read(dataset, f"the quantizer {quantizer}", manifest, where, found)
    if "embed" in manifest.inputs and role == "users":
        _check_embedding(manifest.inputs["embed"], where, found)


def _check_embedding(record: _Record, where: Path, found: Findings) -> None:
    if _load_unchanged(record) is None:
        found.faults.append(
            f"{where} was made from {record['path']}, which is gone or has changed, so that nobody "
            f"can tell whose reviews the users' ids come from; put it back, or make both again"
        )


def _check_read(
    dataset: Dataset, who: str, manifest: Manifest, where: Path, found: Findings
) -> None:
    record = manifest.inputs["data"]
    facts: dict[str, Any] = {"artifact": str(where), "who": who, "data": record["path"]}
    found.facts["read_choices"].append(facts)
    facts["same_data"] = record["digest"] == dataset.artifact.manifest.digest
    if facts["same_data"]:
        return
    source = _load_unchanged(record)
    if source is None:
        found.faults.append(
            f"{where}: {who} read choices of {record['path']}, which is gone or has changed, and "
            f"not of {dataset.artifact.path}; make it again from this data"
        )
        return
    read = _list_choices(load_dataset(source.path), held=False)
    held = _list_choices(dataset, held=True).join(
        _list_choices(dataset, held=False), on=["user_id", "item_id"], how="anti"
    )
    leaked = held.join(read, on=["user_id", "item_id"], how="semi").sort("user_id", "item_id")
    facts["held_out_choices_read"] = leaked.height
    if leaked.height:
        user, item = leaked.row(0)
        found.faults.append(
            f"{where}: {who} read {leaked.height:,} choices of {source.path} that are held out in "
            f"{dataset.artifact.path}, such as that of item {item!r} by user {user!r}; make it "
            f"again from this data"
        )


def _list_choices(dataset: Dataset, *, held: bool) -> pl.DataFrame:
    """Outside ids of user and item, each pair once."""
    train = pl.col("split") == "train"
    return (
        dataset.interactions.filter(~train if held else train)
        .join(dataset.users.select("user_index", "user_id"), on="user_index")
        .with_columns(item_id=pl.lit(pl.Series(dataset.item_ids)).gather("item_index"))
        .select("user_id", "item_id")
        .unique()
    )

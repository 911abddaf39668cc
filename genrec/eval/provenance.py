"""Where a result comes from: the model's files and the artefacts it was made from.

Owns reading what earlier steps left behind, for the report. Loads no model, and takes a missing
piece for missing, except where it shows that model and data do not belong together.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.artifact import Artifact, load_artifact
from genrec.data.dataset import Dataset
from genrec.errors import ArtifactError, DataError
from genrec.manifest import Manifest
from genrec.types import IndexArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One line of the training log; a loss that the line lacks is None."""

    step: int
    loss: float | None
    eval_loss: float | None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What the model's directory tells about how it came to be.

    Shapes:
        codes: (N, L) int64, or None where the model names no codes.
    """

    losses: tuple[LossPoint, ...] = ()
    codes: IndexArray | None = None
    codebook_sizes: tuple[int, ...] = ()
    quality: dict[str, Any] = field(default_factory=dict)


def read_model(artifact: Artifact, dataset: Dataset) -> ModelRecord:
    """The record of a model that was trained on this catalogue.

    Raises:
        DataError: the model's items are not those of the data, in the same order.
    """
    index_path = artifact.path / "item_index.parquet"
    codes = None
    if index_path.is_file():
        index = pl.read_parquet(index_path).sort("item_index")
        _check_items(artifact, index["item_id"].to_list(), dataset)
        if "codes" in index.columns:
            codes = np.array(index["codes"].to_list(), dtype=np.int64)
            codes = codes if codes.size else None  # a model that answers in titles
    settings = _read_json(artifact.path / "genrec.json")
    return ModelRecord(
        losses=tuple(_read_losses(artifact.path / "training.jsonl")),
        codes=codes,
        codebook_sizes=_find_sizes(codes, settings),
        quality=_find_quality(artifact),
    )


def _check_items(artifact: Artifact, item_ids: list[str], dataset: Dataset) -> None:
    if tuple(item_ids) == dataset.item_ids:
        return
    first = next(
        (row for row, pair in enumerate(zip(item_ids, dataset.item_ids)) if pair[0] != pair[1]),  # noqa: B905
        min(len(item_ids), dataset.n_items),
    )
    raise DataError(
        f"the model {artifact.path} was trained on another catalogue ({len(item_ids):,} items) "
        f"than {dataset.artifact.path} ({dataset.n_items:,} items); they differ from item_index "
        f"{first} on. Evaluate it on the data it was made from"
    )


def _find_sizes(codes: IndexArray | None, settings: dict[str, Any]) -> tuple[int, ...]:
    if codes is None:
        return ()
    sizes = settings.get("codebook_sizes")
    if isinstance(sizes, list) and len(sizes) == codes.shape[1]:
        return tuple(int(size) for size in sizes)
    return tuple(int(size) for size in codes.max(axis=0) + 1)


def _find_quality(artifact: Artifact) -> dict[str, Any]:
    """The tokenizer's quality summary: the model's own copy, or that of the tokenizer it names."""
    tokenizer = artifact.manifest.inputs.get("tokenize", {}).get("path")
    folders = [artifact.path] + ([Path(tokenizer)] if tokenizer else [])
    for folder in folders:
        quality = _read_json(folder / "quality.json")
        if quality:
            return quality
    return {}


def _read_losses(path: Path) -> Iterator[LossPoint]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        loss, eval_loss = values.get("loss"), values.get("eval_loss")
        if "step" in values and (loss is not None or eval_loss is not None):
            yield LossPoint(int(values["step"]), loss, eval_loss)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def trace_steps(*artifacts: Artifact) -> dict[str, Manifest]:
    """The manifests of these artefacts and of all they were made from, first steps first.

    Inputs that were moved or deleted since are left out.
    """
    found: dict[str, Manifest] = {}
    for artifact in artifacts:
        _trace(artifact, found)
    return found


def _trace(artifact: Artifact, found: dict[str, Manifest]) -> None:
    for record in artifact.manifest.inputs.values():
        try:
            before = load_artifact(record["path"], verify=False)
        except ArtifactError as error:
            _log.debug("left out of the report: %s", error)
            continue
        if before.manifest.digest == record["digest"]:
            _trace(before, found)
    found.setdefault(artifact.manifest.step, artifact.manifest)

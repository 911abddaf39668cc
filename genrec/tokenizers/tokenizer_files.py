"""A semantic-ID tokenizer's directory: config, weights and codes, written and read together.

Owns the files and their agreement. Knows no quantizer's inside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, join_problems
from genrec.manifest import MANIFEST, PARTIAL, hash_file, read_json, write_json
from genrec.recipe import parse_recipe, strip_header
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sharing.model_card import CARD_FILE, NAMELESS, render_card
from genrec.tokenizers.sid_text import USER_PREFIX, format_sids
from genrec.tokenizers.uniqueness.assign import CodeArray

SCHEMA = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CODES_FILE = "codes.parquet"
RETIRED_FILE = "retired.parquet"
QUALITY_FILE = "quality.json"
HUB_FILES = [CONFIG_FILE, WEIGHTS_FILE, CODES_FILE, RETIRED_FILE, QUALITY_FILE, CARD_FILE]
"""What is sent to a hub and fetched from it; a manifest names paths of one machine."""
_ALWAYS = (CONFIG_FILE, WEIGHTS_FILE, CODES_FILE)
REMEDY = "make it again with `genrec tokenize`, or restore the files"


@dataclass(frozen=True, slots=True)
class Fitted:
    """The quantizer behind a tokenizer, as it was fitted.

    Attributes:
        recipe: what made it.
        weights: what `Quantizer.list_weights` gave.
        dimensions: D of the vectors; 0 where there were none.
        codebook_sizes: how many codes each level of a semantic ID has, a suffix level included.
        subject: `items`, or `users`, whose tokens are spelled apart.
    """

    recipe: TokenizeRecipe
    weights: dict[str, NDArray[Any]]
    dimensions: int
    codebook_sizes: tuple[int, ...]
    subject: str = "items"

    @property
    def prefix(self) -> str:
        """What stands before a level's letter in a token."""
        return USER_PREFIX if self.subject == "users" else ""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a tokenizer stands among its versions.

    Attributes:
        version: from 1; each `add` and `remove` counts one up.
        parent: the digest of the version before, or None.
        retired_ids: items that were removed, whose codes stay reserved.

    Shapes:
        retired_codes: (R, L) int32, row i for `retired_ids[i]`.
    """

    version: int = 1
    parent: str | None = None
    retired_ids: tuple[str, ...] = ()
    retired_codes: CodeArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int32))


@dataclass(frozen=True, slots=True)
class TokenizerRecord:
    """Everything that a tokenizer's directory holds.

    Attributes:
        sids: the texts of the IDs; None where they are spelled `<a_12><b_7>` by the codes.
        quality: what `measure_quality` gave; None if unknown.

    Shapes:
        codes: (N, L) int32, row i for `item_ids[i]`.
        raw_codes: (N, L) int32, before uniqueness; None if unknown.
    """

    item_ids: tuple[str, ...]
    codes: CodeArray
    sids: tuple[str, ...] | None
    fitted: Fitted
    raw_codes: CodeArray | None
    lineage: Lineage
    quality: dict[str, Any] | None = None


def write_record(record: TokenizerRecord, folder: Path, *, name: str = NAMELESS) -> None:
    """Write config, weights, codes, quality and card into a directory, which is made if missing.

    Args:
        record: what to write.
        folder: the directory.
        name: what the card says to load the tokenizer by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fitted, lineage = record.fitted, record.lineage
    save_file(fitted.weights, folder / WEIGHTS_FILE)
    spelled = record.sids is None
    _frame_codes(
        item_id=record.item_ids,
        codes=record.codes,
        sid=format_sids(record.codes, fitted.prefix) if spelled else record.sids,
        raw_codes=record.raw_codes,
    ).write_parquet(folder / CODES_FILE)
    files = [WEIGHTS_FILE, CODES_FILE]
    if lineage.retired_ids:
        retired = _frame_codes(item_id=lineage.retired_ids, codes=lineage.retired_codes)
        retired.write_parquet(folder / RETIRED_FILE)
        files.append(RETIRED_FILE)
    config = {
        "schema": SCHEMA,
        "quantizer": fitted.recipe.quantizer,
        "subject": fitted.subject,
        "n_items": len(record.item_ids),
        "n_levels": len(fitted.codebook_sizes),
        "codebook_sizes": list(fitted.codebook_sizes),
        "dimensions": fitted.dimensions,
        "spelled": spelled,
        "version": lineage.version,
        "parent": lineage.parent,
        "recipe": fitted.recipe.model_dump(mode="json"),
        "files": {name: hash_file(folder / name) for name in files},
    }
    write_json(folder / CONFIG_FILE, config)
    if record.quality is not None:
        write_json(folder / QUALITY_FILE, record.quality)
    card = render_card(config, record.quality, name)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _frame_codes(**columns: Any) -> pl.DataFrame:
    """A table of these columns; codes (N, L) become lists without a Python number each."""
    return pl.DataFrame(
        [
            pl.Series(name, values, pl.Array(pl.Int32, values.shape[1])).arr.to_list()
            if isinstance(values, np.ndarray)
            else pl.Series(name, values, pl.String)
            for name, values in columns.items()
            if values is not None
        ]
    )


def read_record(folder: Path) -> TokenizerRecord:
    """What a tokenizer's directory holds.

    Raises:
        ArtifactError: files missing, half written, or not written together.
    """
    if (folder / MANIFEST).exists() or (folder / PARTIAL).exists():
        load_artifact(folder, step="tokenize")
    config = _read_config(folder)
    try:
        recipe = parse_recipe(
            TokenizeRecipe, strip_header(config["recipe"]), source=str(folder / CONFIG_FILE)
        )
        fitted = Fitted(
            recipe,
            load_file(folder / WEIGHTS_FILE),
            config["dimensions"],
            tuple(config["codebook_sizes"]),
            config["subject"],
        )
        table = pl.read_parquet(folder / CODES_FILE)
        has_raw = "raw_codes" in table.columns
        return TokenizerRecord(
            tuple(table["item_id"].to_list()),
            stack_codes(table["codes"]),
            None if config["spelled"] else tuple(table["sid"].to_list()),
            fitted,
            stack_codes(table["raw_codes"]) if has_raw else None,
            _read_lineage(folder, config),
            _read_quality(folder),
        )
    except (KeyError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{folder} cannot be read: {error}; {REMEDY}") from error


def stack_codes(column: pl.Series) -> CodeArray:
    """A column of equally long code lists as an array (N, L).

    Raises:
        ValueError: lists of different lengths.
    """
    lengths = column.list.len()
    if column.is_empty():
        return np.zeros((0, 0), dtype=np.int32)
    if lengths.n_unique() > 1:
        raise ValueError(f"column {column.name!r} holds code lists of different lengths")
    flat = column.explode().to_numpy().astype(np.int32, copy=False)
    return flat.reshape(len(column), int(lengths[0]))


def _read_lineage(folder: Path, config: dict[str, Any]) -> Lineage:
    path = folder / RETIRED_FILE
    if RETIRED_FILE not in config["files"]:
        return Lineage(config["version"], config["parent"])
    table = pl.read_parquet(path)
    ids = tuple(table["item_id"].to_list())
    return Lineage(config["version"], config["parent"], ids, stack_codes(table["codes"]))


def _read_quality(folder: Path) -> dict[str, Any] | None:
    path = folder / QUALITY_FILE
    return (read_json(path) or None) if path.is_file() else None


def _read_config(folder: Path) -> dict[str, Any]:
    """The config of a tokenizer whose files are all there and as they were written."""
    missing = [name for name in _ALWAYS if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{folder} is no semantic-ID tokenizer: {', '.join(missing)} missing; {REMEDY}"
        )
    config = read_json(folder / CONFIG_FILE)
    if config.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} has schema {config.get('schema')!r}, but this genrec reads "
            f"{SCHEMA}; {REMEDY}"
        )
    recorded = config.get("files") or {}
    for name in (WEIGHTS_FILE, CODES_FILE):
        recorded.setdefault(name, None)
    changed = [
        f"{name}: not the file that {CONFIG_FILE} was written with"
        for name, digest in recorded.items()
        if not (folder / name).is_file() or digest != hash_file(folder / name)
    ]
    if changed:
        subject = f"codes, config and weights in {folder} do not belong together; {REMEDY}"
        raise ArtifactError(join_problems(subject, changed))
    sizes = config.get("codebook_sizes")
    if not isinstance(sizes, list) or config.get("n_levels") != len(sizes):
        raise ArtifactError(
            f"{folder / CONFIG_FILE} contradicts itself: {config.get('n_levels')} levels, but "
            f"codebook_sizes {json.dumps(sizes)}; {REMEDY}"
        )
    return config

"""Items to semantic IDs and back, from a directory.

Owns the tokenizer's files and their agreement. Knows no prompt and no language model; the quantizer
behind the codes is opened only when vectors are quantized.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, DataError, UnknownItemError, join_problems
from genrec.manifest import MANIFEST, PARTIAL, hash_file, read_json, write_json
from genrec.recipe import parse_recipe, strip_header
from genrec.tokenizers.assign import CodeArray
from genrec.tokenizers.quantizer import Quantizer, build_quantizer, check_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sid_text import check_levels, format_sid, format_token, parse_sid
from genrec.types import FloatArray

SCHEMA = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CODES_FILE = "codes.parquet"
_REMEDY = "make it again with `genrec tokenize`, or restore the files"


class SemanticIdTokenizer:
    """A catalogue's semantic IDs: one item, one code sequence.

    Shapes:
        codes: (N, L) int32, row i for `item_ids[i]`, no two rows alike.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: CodeArray,
        recipe: TokenizeRecipe,
        weights: dict[str, FloatArray],
        dimensions: int,
    ) -> None:
        """Take over codes that were made unique, and the weights that made them.

        Raises:
            DataError: items or codes that are not unique, or do not fit each other or the recipe.
        """
        self.item_ids = tuple(item_ids)
        self.codes = np.ascontiguousarray(codes, dtype=np.int32)
        self.recipe = recipe
        self.dimensions = dimensions
        self.weights = weights
        problems = list(_find_faults(self.item_ids, self.codes, recipe.codebook_sizes))
        if problems:
            raise DataError(join_problems("these semantic IDs cannot be used", problems))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes each level has."""
        return self.recipe.codebook_sizes

    @property
    def n_levels(self) -> int:
        """How many tokens a semantic ID has."""
        return len(self.codebook_sizes)

    @property
    def n_items(self) -> int:
        """How many items have one."""
        return len(self.item_ids)

    @cached_property
    def sids(self) -> tuple[str, ...]:
        """Every item's semantic ID, in the order of `item_ids`."""
        return tuple(format_sid(row) for row in self.codes.tolist())

    @cached_property
    def quantizer(self) -> Quantizer:
        """The fitted quantizer.

        Raises:
            ArtifactError: the weights are not those of the recipe's quantizer.
        """
        quantizer = build_quantizer(self.recipe, self.dimensions)
        quantizer.restore_weights(self.weights)
        return quantizer

    @cached_property
    def _rows_by_item(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _items_by_codes(self) -> dict[tuple[int, ...], str]:
        rows = map(tuple, self.codes.tolist())
        return dict(zip(rows, self.item_ids, strict=True))

    def encode(self, item_ids: Sequence[str]) -> list[str]:
        """The semantic IDs of items.

        Raises:
            UnknownItemError: ids that the catalogue does not hold, all of them named.
        """
        unknown = [item_id for item_id in item_ids if item_id not in self._rows_by_item]
        if unknown:
            raise UnknownItemError(
                join_problems(
                    f"the tokenizer knows {self.n_items:,} items, but not these",
                    [repr(item_id) for item_id in unknown],
                )
            )
        return [self.sids[self._rows_by_item[item_id]] for item_id in item_ids]

    def decode(self, sids: Sequence[str]) -> list[str]:
        """The item ids that semantic IDs name.

        Raises:
            DataError: a text that is no semantic ID.
            UnknownItemError: semantic IDs that no item has, all of them named.
        """
        found = [self._items_by_codes.get(parse_sid(sid)) for sid in sids]
        unknown = [repr(sid) for sid, item in zip(sids, found, strict=True) if item is None]
        if unknown:
            raise UnknownItemError(
                join_problems(f"no item of {self.n_items:,} has these semantic IDs", unknown)
            )
        return [item_id for item_id in found if item_id is not None]

    def quantize(self, vectors: FloatArray) -> CodeArray:
        """The quantizer's own codes (N, L) for any vectors; items may share them.

        Raises:
            DataError: vectors of another width, or not finite.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        check_vectors(vectors, "the input", self.dimensions)
        return self.quantizer.encode_vectors(vectors)

    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """Every token there can be, by level and code, used or not."""
        return tuple(
            tuple(format_token(level, code) for code in range(size))
            for level, size in enumerate(self.codebook_sizes)
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write config, weights and codes into a directory, which is made if missing."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, folder / WEIGHTS_FILE)
        pl.DataFrame(
            {"item_id": self.item_ids, "codes": self.codes.tolist(), "sid": self.sids},
            schema={"item_id": pl.String, "codes": pl.List(pl.Int32), "sid": pl.String},
        ).write_parquet(folder / CODES_FILE)
        config = {
            "schema": SCHEMA,
            "quantizer": self.recipe.quantizer,
            "n_items": self.n_items,
            "n_levels": self.n_levels,
            "codebook_sizes": list(self.codebook_sizes),
            "dimensions": self.dimensions,
            "recipe": self.recipe.model_dump(mode="json"),
            "files": {name: hash_file(folder / name) for name in (WEIGHTS_FILE, CODES_FILE)},
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> SemanticIdTokenizer:
        """The tokenizer in a directory: a `tokenizer/` artefact, or what `save_pretrained` wrote.

        Raises:
            ArtifactError: files missing, half written, or not written together.
        """
        folder = Path(path)
        if (folder / MANIFEST).exists() or (folder / PARTIAL).exists():
            load_artifact(folder, step="tokenize")
        config = _read_config(folder)
        try:
            recipe = parse_recipe(
                TokenizeRecipe, strip_header(config["recipe"]), source=str(folder / CONFIG_FILE)
            )
            table = pl.read_parquet(folder / CODES_FILE, columns=["item_id", "codes"])
            weights = load_file(folder / WEIGHTS_FILE)
            codes = np.array(table["codes"].to_list(), dtype=np.int32)
            return cls(table["item_id"].to_list(), codes, recipe, weights, config["dimensions"])
        except (KeyError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"{folder} cannot be read: {error}; {_REMEDY}") from error
        except DataError as error:
            raise ArtifactError(f"{folder} does not hold together: {error}; {_REMEDY}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """The config of a tokenizer whose files are all there and as they were written."""
    missing = [
        name for name in (CONFIG_FILE, WEIGHTS_FILE, CODES_FILE) if not (folder / name).is_file()
    ]
    if missing:
        raise ArtifactError(
            f"{folder} is no semantic-ID tokenizer: {', '.join(missing)} missing; {_REMEDY}"
        )
    config = read_json(folder / CONFIG_FILE)
    if config.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} has schema {config.get('schema')!r}, but this genrec reads "
            f"{SCHEMA}; {_REMEDY}"
        )
    recorded = config.get("files") or {}
    changed = [
        f"{name}: not the file that {CONFIG_FILE} was written with"
        for name in (WEIGHTS_FILE, CODES_FILE)
        if recorded.get(name) != hash_file(folder / name)
    ]
    if changed:
        subject = f"codes, config and weights in {folder} do not belong together; {_REMEDY}"
        raise ArtifactError(join_problems(subject, changed))
    sizes = config.get("recipe", {}).get("codebook_sizes")
    if config.get("codebook_sizes") != sizes or config.get("n_levels") != len(sizes or ()):
        raise ArtifactError(
            f"{folder / CONFIG_FILE} contradicts itself: codebook_sizes "
            f"{json.dumps(config.get('codebook_sizes'))}, but its recipe says {json.dumps(sizes)}; "
            f"{_REMEDY}"
        )
    return config


def _find_faults(item_ids: Sequence[str], codes: CodeArray, sizes: Sequence[int]) -> list[str]:
    """One line for each way in which items, codes and codebooks do not fit."""
    check_levels(len(sizes))
    if codes.shape != (len(item_ids), len(sizes)):
        return [f"codes have shape {codes.shape}, but need {(len(item_ids), len(sizes))}"]
    faults = []
    if ((codes < 0) | (codes >= np.array(sizes))).any():
        faults.append(f"codes lie outside codebooks of sizes {list(sizes)}")
    shared = len(codes) - len(np.unique(codes, axis=0))
    if shared:
        faults.append(f"{shared:,} items share all their codes with another; assign unique ones")
    repeated = [item_id for item_id, count in Counter(item_ids).items() if count > 1]
    if repeated:
        faults.append(f"{len(repeated):,} item ids come twice, such as {repeated[0]!r}")
    return faults

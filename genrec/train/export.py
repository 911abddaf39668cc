"""The model directory that training leaves behind.

Owns its files: a plain Hugging Face checkpoint with adapter and token rows merged in, the adapter
as trained, the item index, and what genrec needs to put items in and get items out. Knows nothing
of how the model was trained.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from peft import PeftModel

from genrec.artifact import Artifact
from genrec.errors import ArtifactError
from genrec.manifest import write_json
from genrec.recipe import hash_values
from genrec.train.adapter import merge_adapter
from genrec.train.checkpoint import quiet_transformers

SCHEMA = 1
RECOMMEND_FILE = "recommend.json"
INDEX_FILE = "item_index.parquet"
SETTINGS_FILE = "genrec.json"
CARD_FILE = "README.md"
CATALOGUE_FILES = (INDEX_FILE, SETTINGS_FILE, CARD_FILE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items a model is trained on, in item_index order.

    Shapes:
        codes: (N, L) int32.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    sids: tuple[str, ...]
    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """The sha256 over which item has which semantic ID."""
        return hash_values([list(pair) for pair in zip(self.item_ids, self.sids, strict=True)])


def read_catalogue(data: Path, tokenizer: Path, codebook_sizes: Sequence[int]) -> Catalogue:
    """The items of a data artefact with their codes from a tokenizer artefact.

    Raises:
        ArtifactError: the two do not hold the same items.
    """
    items = pl.read_parquet(data / "items.parquet").sort("item_index")
    codes = pl.read_parquet(tokenizer / "codes.parquet")
    joined = items.select("item_index", "item_id", "title", "text").join(
        codes.select("item_id", "codes", "sid"), on="item_id", how="left", maintain_order="left"
    )
    missing = joined.filter(pl.col("sid").is_null())["item_id"].to_list()
    if missing or len(codes) != len(items):
        raise ArtifactError(
            f"{tokenizer} was not made from {data}: {len(missing):,} of {len(items):,} items have "
            f"no semantic ID (the first: {missing[:3]}), and the tokenizer holds {len(codes):,} "
            f"items; run `genrec embed` and `genrec tokenize` on this data again"
        )
    return Catalogue(
        item_ids=tuple(joined["item_id"].to_list()),
        titles=tuple(joined["title"].fill_null("").to_list()),
        texts=tuple(joined["text"].fill_null("").to_list()),
        sids=tuple(joined["sid"].to_list()),
        codes=np.array(joined["codes"].to_list(), dtype=np.int32),
        codebook_sizes=tuple(codebook_sizes),
    )


def export_model(
    model: Any,
    tokenizer: Any,
    catalogue: Catalogue,
    instructions: Artifact,
    settings: dict[str, Any],
    out: Path,
) -> None:
    """Write everything but the manifest and the training log; merges `model` in place.

    Args:
        model: as trained, adapter and all.
        tokenizer: the extended tokenizer.
        catalogue: the items.
        instructions: gives `recommend.json`.
        settings: small facts for `genrec.json` besides the catalogue's.
        out: the artefact's directory.
    """
    with quiet_transformers():
        if isinstance(model, PeftModel):
            # The vocabulary did grow, but its new rows are in the adapter, as rows.
            model.save_pretrained(str(out / "adapter"), save_embedding_layers=False)
        merged = merge_adapter(model)
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            _align_token(merged, name, getattr(tokenizer, name))
        merged.save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
    shutil.copyfile(instructions.path / RECOMMEND_FILE, out / RECOMMEND_FILE)
    write_catalogue(catalogue, settings, out)


def write_catalogue(catalogue: Catalogue, settings: dict[str, Any], out: Path) -> None:
    """Write the files that say which items the model knows: `CATALOGUE_FILES`.

    Args:
        catalogue: the items.
        settings: small facts for `genrec.json` besides the catalogue's.
        out: the artefact's directory.
    """
    _write_index(catalogue, out / INDEX_FILE)
    write_json(
        out / SETTINGS_FILE,
        {
            "schema": SCHEMA,
            "n_items": len(catalogue.item_ids),
            "n_levels": len(catalogue.codebook_sizes),
            "codebook_sizes": list(catalogue.codebook_sizes),
            "catalogue_digest": catalogue.digest,
            **settings,
        },
    )
    (out / CARD_FILE).write_text(_render_card(catalogue, settings), encoding="utf-8")


def _align_token(model: Any, name: str, value: int | None) -> None:
    # generate() warns, or pads with the wrong token, when config and tokenizer disagree.
    if value is None:
        return
    setattr(model.config, name, value)
    if model.generation_config is not None:
        current = getattr(model.generation_config, name)
        if not (isinstance(current, list) and value in current):
            setattr(model.generation_config, name, value)


def _write_index(catalogue: Catalogue, path: Path) -> None:
    pl.DataFrame(
        {
            "item_index": np.arange(len(catalogue.item_ids), dtype=np.int64),
            "item_id": catalogue.item_ids,
            "title": catalogue.titles,
            "sid": catalogue.sids,
            "codes": catalogue.codes.tolist(),
        },
        schema_overrides={"codes": pl.List(pl.Int32)},
    ).write_parquet(path)


def _render_card(catalogue: Catalogue, settings: dict[str, Any]) -> str:
    levels = " x ".join(str(size) for size in catalogue.codebook_sizes)
    return (
        "# A generative recommender\n\n"
        f"Made by genrec from `{settings['base']}` (method: {settings['method']}). It knows "
        f"{len(catalogue.item_ids):,} items as semantic IDs of {len(catalogue.codebook_sizes)} "
        f"tokens (codebooks {levels}).\n\n"
        "This directory is a plain Hugging Face checkpoint with everything merged in; `adapter/`, "
        "where there is one, holds the LoRA weights and the token rows as they were trained. "
        "`item_index.parquet` says which semantic ID is which item, and `manifest.json` holds the "
        "recipe, the inputs' digests and the library versions.\n\n"
        "```python\n"
        "from genrec.recommender import Recommender\n"
        'Recommender.from_pretrained("this directory").recommend(["an item id"], k=10)\n'
        "```\n"
    )

"""The model directory that training leaves behind.

Owns its files: a plain Hugging Face checkpoint with adapter and token rows merged in, the adapter
as trained or in parts, the item index, the card, and what genrec needs to put items in and get
items out. Knows nothing of how the model was trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from peft import PeftModel

from genrec.artifact import Artifact
from genrec.errors import ArtifactError
from genrec.manifest import read_json, write_json
from genrec.prompts.explain import EXPLAIN_FILE
from genrec.recipe import hash_values
from genrec.train.adapter import merge_adapter
from genrec.train.card import render_card
from genrec.train.checkpoint import SETTINGS_FILE, quiet_transformers
from genrec.train.delta import (
    ADAPTER_FOLDER,
    BASE_FOLDER,
    LORA_FOLDER,
    split_adapter,
    write_delta,
)
from genrec.train.recipe import TrainRecipe

SCHEMA = 1
RECOMMEND_FILE = "recommend.json"
INDEX_FILE = "item_index.parquet"
CARD_FILE = "README.md"
BASE_SETTINGS = f"{BASE_FOLDER}/{SETTINGS_FILE}"
CATALOGUE_FILES = (INDEX_FILE, SETTINGS_FILE, CARD_FILE, BASE_SETTINGS)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items a model is trained on, in item_index order.

    Where the tokenizer's IDs are titles, there are no levels, and every sid is empty.

    Shapes:
        codes: (N, L) int32.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    sids: tuple[str, ...]
    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    categories: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The sha256 over which item has which semantic ID, or title where there are no IDs."""
        names = self.sids if self.codebook_sizes else self.titles
        return hash_values([list(pair) for pair in zip(self.item_ids, names, strict=True)])


@dataclass(frozen=True, slots=True)
class Account:
    """What is told about a model.

    Attributes:
        settings: small values for `genrec.json` besides the catalogue's; `base` and `method`
            among them.
        recipe: what it was trained by.
        facts: the manifest's, for the card.
    """

    settings: dict[str, Any]
    recipe: TrainRecipe
    facts: Mapping[str, Any]


def read_codebook_sizes(tokenizer: Path) -> list[int]:
    """How many codes each level of a tokenizer artefact has a token for; none for titles."""
    config = read_json(tokenizer / "config.json")
    return [int(size) for size in config["codebook_sizes"]] if config.get("spelled", True) else []


def read_catalogue(data: Path, tokenizer: Path, codebook_sizes: Sequence[int]) -> Catalogue:
    """The items of a data artefact with their codes from a tokenizer artefact.

    Raises:
        ArtifactError: the two do not hold the same items.
    """
    items = pl.read_parquet(data / "items.parquet").sort("item_index")
    codes = pl.read_parquet(tokenizer / "codes.parquet")
    joined = items.select("item_index", "item_id", "title", "text", pick_categories(items)).join(
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
        sids=tuple(joined["sid"].to_list()) if codebook_sizes else ("",) * len(joined),
        codes=(
            np.array(joined["codes"].to_list(), dtype=np.int32)
            if codebook_sizes
            else np.empty((len(joined), 0), dtype=np.int32)
        ),
        codebook_sizes=tuple(codebook_sizes),
        categories=tuple(joined["categories"].to_list()),
    )


def pick_categories(items: pl.DataFrame) -> pl.Expr:
    """The items' category paths, empty where they have none."""
    if "categories" not in items.columns:
        return pl.lit("").alias("categories")
    return pl.col("categories").cast(pl.String).fill_null("")


def export_model(
    model: Any,
    tokenizer: Any,
    catalogue: Catalogue,
    instructions: Artifact,
    account: Account,
    out: Path,
) -> None:
    """Write everything but the manifest and the training log; merges `model` in place.

    Args:
        model: as trained, adapter and all.
        tokenizer: the extended tokenizer.
        catalogue: the items.
        instructions: gives `recommend.json`, and `explain.json` where rows explain.
        account: what is told about the model.
        out: the artefact's directory.
    """
    with quiet_transformers():
        if isinstance(model, PeftModel):
            model = _write_adapter(model, tokenizer, account, out)
        merged = merge_adapter(model)
        _align_tokens(merged, tokenizer)
        merged.save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
    shutil.copyfile(instructions.path / RECOMMEND_FILE, out / RECOMMEND_FILE)
    if (instructions.path / EXPLAIN_FILE).is_file():
        shutil.copyfile(instructions.path / EXPLAIN_FILE, out / EXPLAIN_FILE)
    write_catalogue(catalogue, account, out)


def _write_adapter(model: PeftModel, tokenizer: Any, account: Account, out: Path) -> PeftModel:
    """Write the adapter as trained, and in parts where the recipe wants them; the model to merge.

    Over frozen rows the adapter as trained is the LoRA weights alone, and is written once: as
    `lora/`, unless it is DoRA, which vLLM refuses.
    """
    recipe = account.recipe
    config = model.peft_config["default"]
    # PEFT writes a set in an order that differs from run to run, and with it the file.
    config.target_modules = sorted(config.target_modules)
    bare = recipe.token_rows == "frozen" and recipe.method != "dora"
    if not bare:
        named, config.base_model_name_or_path = (
            config.base_model_name_or_path,
            account.settings["base"],
        )
        # The vocabulary did grow, but its new rows are in the adapter, as rows.
        model.save_pretrained(str(out / ADAPTER_FOLDER), save_embedding_layers=False)
        config.base_model_name_or_path = named  # PEFT warns where it is not the model's own name
        # PEFT's card is a form to fill in; the one above it says what is in the folder.
        (out / ADAPTER_FOLDER / CARD_FILE).unlink()
    if recipe.export_base:
        _align_tokens(model.get_base_model(), tokenizer)
        return split_adapter(model, tokenizer, out)
    if bare:
        write_delta(model, account.settings["base"], out / LORA_FOLDER)
    return model


def write_catalogue(catalogue: Catalogue, account: Account, out: Path) -> None:
    """Write the files that say which items the model knows: `CATALOGUE_FILES`.

    Args:
        catalogue: the items.
        account: what is told about the model.
        out: the artefact's directory, with all other files in it.
    """
    _write_index(catalogue, out / INDEX_FILE)
    settings = {
        "schema": SCHEMA,
        "n_items": len(catalogue.item_ids),
        "n_levels": len(catalogue.codebook_sizes),
        "codebook_sizes": list(catalogue.codebook_sizes),
        "catalogue_digest": catalogue.digest,
        **account.settings,
    }
    write_json(out / SETTINGS_FILE, settings)
    if (out / BASE_FOLDER).is_dir():
        # A later adapter over base/ alone is held to the same catalogue and users.
        write_json(out / BASE_SETTINGS, settings)
    card = render_card(settings, account.recipe, account.facts, out)
    (out / CARD_FILE).write_text(card, encoding="utf-8")


def _align_tokens(model: Any, tokenizer: Any) -> None:
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        _align_token(model, name, getattr(tokenizer, name))


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
            "categories": catalogue.categories,
        },
        schema_overrides={"codes": pl.List(pl.Int32)},
    ).write_parquet(path)

"""A trained model with a newer tokenizer's items, without training.

Owns which files of a model say what it knows, and what a newer version of them takes. Knows no
weight: they stay the same files.

New items need no new tokens: every code of every level has its row since training, so a semantic ID
that no item had is spelled with tokens that the model knows from its neighbours.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import polars as pl

from genrec.artifact import Artifact, load_artifact, write_artifact
from genrec.errors import ArtifactError, DataError, join_problems
from genrec.manifest import MANIFEST
from genrec.recipe import parse_recipe, strip_header
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.update import check_successor
from genrec.train.checkpoint import SETTINGS_FILE
from genrec.train.delta import BASE_FOLDER, point_delta
from genrec.train.export import (
    CATALOGUE_FILES,
    INDEX_FILE,
    Account,
    Catalogue,
    pick_categories,
    write_catalogue,
)
from genrec.train.recipe import TrainRecipe

GONE_ITEMS = "gone_items"
"""The semantic IDs of items that a model's weights know and its index no longer holds."""
_OWN_SETTINGS = ("schema", "n_items", "n_levels", "codebook_sizes", "catalogue_digest")
_log = logging.getLogger(__name__)


def apply_tokenizer(
    model: Path, tokenizer: Path, data: Path, out: Path, *, allow_reuse: bool = False
) -> Artifact:
    """The model artefact with the items of a newer tokenizer, in the order of the data.

    Weights are hard links to the model's own files where the file system has them, else copies.

    Args:
        model: a `genrec train` artefact.
        tokenizer: a later version of the tokenizer that it was trained with.
        data: a `genrec data` artefact with the title and text of each of its items.
        out: another directory to write.
        allow_reuse: whether a new item may have the semantic ID of one that is gone.

    Raises:
        ArtifactError: an input is no complete artefact, or `out` cannot be written.
        DataError: items without a row in the data, all of them named.
        ModelError: the tokenizer is no descendant of the one that the model was trained with.
    """
    if out.resolve() == model.resolve():
        raise ArtifactError(f"{out} is the model itself; choose another --out for its next version")
    inputs = {
        "train": load_artifact(model, step="train"),
        "tokenize": load_artifact(tokenizer, step="tokenize"),
        "data": load_artifact(data, step="data"),
    }
    settings = json.loads((model / SETTINGS_FILE).read_text(encoding="utf-8"))
    index = pl.read_parquet(model / INDEX_FILE)
    present = dict(zip(index["item_id"], index["sid"], strict=True))
    # What it was trained on stays in its weights, whatever versions came between.
    known = settings.get(GONE_ITEMS, {}) | present
    newer = SemanticIdTokenizer.from_pretrained(tokenizer)
    check_successor(known, settings["codebook_sizes"], newer, allow_reuse=allow_reuse)
    catalogue = _join_catalogue(newer, data)
    trained = inputs["train"].manifest
    recipe = parse_recipe(TrainRecipe, strip_header(trained.recipe), source=str(model / MANIFEST))
    settings = {name: value for name, value in settings.items() if name not in _OWN_SETTINGS}
    settings["data_digest"] = inputs["data"].manifest.digest
    settings["tokenizer_digest"] = inputs["tokenize"].manifest.digest
    left = set(newer.item_ids)
    settings[GONE_ITEMS] = {item: sid for item, sid in known.items() if item not in left}
    with write_artifact(out, step="train", recipe=recipe, inputs=inputs) as work:
        for name in trained.files:
            if name not in CATALOGUE_FILES:
                _link_file(model / name, work.path / name)
        if (work.path / BASE_FOLDER).is_dir():
            point_delta(work.path)
        added = len(left - present.keys())
        removed = len(present.keys() - left)
        work.facts.update(trained.facts | {"items_added": added, "items_removed": removed})
        write_catalogue(catalogue, Account(settings, recipe, work.facts), work.path)
    _log.info("apply: %d items added, %d removed, weights unchanged", added, removed)
    return work.artifact


def _join_catalogue(tokenizer: SemanticIdTokenizer, data: Path) -> Catalogue:
    """The tokenizer's items with title and text, as training on this data would order them."""
    items = pl.read_parquet(data / "items.parquet").sort("item_index")
    row_of = {item_id: row for row, item_id in enumerate(tokenizer.item_ids)}
    items = items.filter(pl.col("item_id").is_in(list(row_of)))
    item_ids = tuple(items["item_id"].to_list())
    found = set(item_ids)
    missing = [repr(item_id) for item_id in row_of if item_id not in found]
    if missing:
        raise DataError(
            join_problems(
                f"{data} has no title and text of these items of the tokenizer; run `genrec data` "
                f"on the enlarged catalogue and give that",
                missing,
            )
        )
    rows = [row_of[item_id] for item_id in item_ids]
    return Catalogue(
        item_ids=item_ids,
        titles=tuple(items["title"].fill_null("").to_list()),
        texts=tuple(items["text"].fill_null("").to_list()),
        sids=tuple(tokenizer.sids[row] for row in rows),
        codes=tokenizer.codes[rows],
        codebook_sizes=tokenizer.codebook_sizes,
        categories=tuple(items.select(pick_categories(items)).to_series().to_list()),
    )


def _link_file(source: Path, target: Path) -> None:
    """The same file under another name: artefacts are replaced, never written into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)

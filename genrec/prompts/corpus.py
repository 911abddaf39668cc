"""What rows are written from: the catalogue's text, its semantic ids, and who chose what.

Owns reading the data and tokenizer artefacts for prompts, and the check that they belong together.
Knows no task and no template.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifact import Artifact, load_artifact
from genrec.data.dataset import Dataset
from genrec.errors import ArtifactError, DataError, join_problems
from genrec.manifest import read_json
from genrec.prompts.recipe import MAX_HISTORY_ITEMS, PromptsRecipe
from genrec.prompts.render import CleanText, SidText, check_sid, clean_text
from genrec.types import IndexArray

CODES_FILE = "codes.parquet"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Walks:
    """Users' choices laid end to end, each user's oldest first.

    Shapes:
        user_index: (U,) int64.
        offsets: (U + 1,) int64; user u chose item_index[offsets[u]:offsets[u + 1]].
        item_index: (M,) int64.
        owner: (M,) int64, the row of user_index that each choice belongs to.
    """

    user_index: IndexArray
    offsets: IndexArray
    item_index: IndexArray
    owner: IndexArray = field(init=False)

    def __post_init__(self) -> None:
        """Derive the owner of each choice."""
        rows = np.arange(len(self.user_index), dtype=np.int64)
        object.__setattr__(self, "owner", np.repeat(rows, np.diff(self.offsets)))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything that a row can show.

    Attributes:
        items: the catalogue's table, in item_index order.
        sids: each item's semantic ids.
        walks: the choices that rows may show and ask for.
        max_history: most items that a row shows.
        max_text_characters: the longest that one value of data may be.
    """

    items: pl.DataFrame
    sids: list[SidText]
    walks: Walks
    max_history: int
    max_text_characters: int
    _texts: dict[str, list[CleanText]] = field(default_factory=dict)

    def texts(self, column: str) -> list[CleanText]:
        """A column of the catalogue, cleaned, in item_index order; empty where there is none."""
        if column not in self._texts:
            self._texts[column] = self._clean_column(column)
        return self._texts[column]

    def _clean_column(self, column: str) -> list[CleanText]:
        if column not in self.items.columns:
            return [CleanText("")] * len(self.sids)
        values = self.items.get_column(column)
        if values.dtype.is_float():
            values = values.map_elements(lambda value: f"{value:.2f}", return_dtype=pl.String)
        texts = values.cast(pl.String).fill_null("")
        return [clean_text(text, self.max_text_characters) for text in texts]


def read_corpus(
    recipe: PromptsRecipe, dataset: Dataset, tokenizer: str | Path
) -> tuple[Corpus, Artifact]:
    """The corpus of the training choices, and the tokenizer's artefact.

    Raises:
        ArtifactError: the tokenizer artefact is unusable, made for another catalogue, or its IDs
            are texts.
    """
    artifact = load_artifact(tokenizer, step="tokenize")
    _refuse_texts(artifact)
    sids = _match_sids(artifact.path / CODES_FILE, dataset)
    train = dataset.sequences(("train",))
    corpus = Corpus(
        items=dataset.items,
        sids=sids,
        walks=Walks(train.user_index, train.offsets, train.item_index),
        max_history=_inherit_max_history(recipe, dataset),
        max_text_characters=recipe.max_text_characters,
    )
    return corpus, artifact


def _refuse_texts(artifact: Artifact) -> None:
    """Raise where IDs are words: rows need tokens, which text from data must never become."""
    config = artifact.path / "config.json"
    if config.is_file() and not read_json(config).get("spelled", True):
        raise ArtifactError(
            f"the IDs of {artifact.path} are titles, not tokens such as <a_12>, so no instruction "
            f"rows can be made of them: titles serve a language model that is not tuned; use a "
            f"tokenizer of another recipe, such as rqvae"
        )


def hold_out_valid(corpus: Corpus, dataset: Dataset) -> Corpus:
    """The same corpus, its walks now each user's training choices and then the validation item."""
    held = dataset.holdout("valid")
    walks = [
        np.append(history, targets[:1])
        for history, targets in zip(held.histories, held.targets, strict=True)
    ]
    lengths = np.array([0, *(len(walk) for walk in walks)], dtype=np.int64)
    flat = np.concatenate(walks) if walks else np.empty(0)
    return replace(
        corpus,
        walks=Walks(held.user_index, np.cumsum(lengths), flat.astype(np.int64)),
    )


def _inherit_max_history(recipe: PromptsRecipe, dataset: Dataset) -> int:
    if recipe.max_history is not None:
        return recipe.max_history
    inherited = dataset.artifact.manifest.recipe.get("max_history")
    if inherited is None:
        _log.info("max_history: %d, the default (the data sets none)", MAX_HISTORY_ITEMS)
        return MAX_HISTORY_ITEMS
    _log.info("max_history: %d, as in %s", inherited, dataset.artifact.path)
    return int(inherited)


def _match_sids(path: Path, dataset: Dataset) -> list[SidText]:
    try:
        table = pl.read_parquet(path, columns=["item_id", "sid"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            f"{path} does not hold the columns item_id and sid ({error}); run `genrec tokenize` "
            f"again"
        ) from error
    sid_of = dict(zip(table["item_id"].to_list(), table["sid"].to_list(), strict=True))
    problems = _find_mismatches(table, sid_of, dataset.item_ids)
    if problems:
        raise ArtifactError(
            join_problems(
                f"tokenizer {path.parent} belongs to another catalogue than data "
                f"{dataset.artifact.path}; make embeddings and tokenizer from this data",
                problems,
            )
        )
    try:
        return [check_sid(sid_of[item_id]) for item_id in dataset.item_ids]
    except DataError as error:
        raise ArtifactError(f"{path}: {error}; run `genrec tokenize` again") from error


def _find_mismatches(
    table: pl.DataFrame, sid_of: dict[str, str], item_ids: tuple[str, ...]
) -> list[str]:
    problems = []
    without = [item_id for item_id in item_ids if item_id not in sid_of]
    if without:
        problems.append(f"{len(without)} items without semantic ids: {_name_some(without)}")
    foreign = sorted(sid_of.keys() - set(item_ids))
    if foreign:
        problems.append(f"{len(foreign)} semantic ids of unknown items: {_name_some(foreign)}")
    if len(sid_of) != table.height:
        problems.append(f"{table.height - len(sid_of)} item ids occur more than once")
    shared = table.height - table["sid"].n_unique()
    if shared:
        problems.append(f"{shared} items share their semantic ids with another item")
    return problems


def _name_some(item_ids: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(item_id) for item_id in item_ids[:most])
    return f"{shown}, ..." if len(item_ids) > most else shown

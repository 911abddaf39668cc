"""What rows are written from: the catalogue's text, its semantic ids, and who chose what.

Owns reading the data and tokenizer artefacts for prompts, and the check that they belong together.
Knows no task and no template.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrec.artifact import Artifact, load_artifact
from genrec.data.dataset import Dataset
from genrec.data.log import REVIEW_COLUMNS
from genrec.errors import ArtifactError, DataError, join_problems
from genrec.manifest import read_json
from genrec.prompts.recipe import MAX_HISTORY_ITEMS, PromptsRecipe
from genrec.prompts.render import CleanText, SidText, check_sid, check_user_sid, clean_text
from genrec.types import IndexArray

CODES_FILE = "codes.parquet"
EVENT_COLUMNS = ("timestamp", "rating", *REVIEW_COLUMNS)
T = TypeVar("T")
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
        sids: each item's semantic ids; all empty where the tokenizer's IDs are titles.
        walks: the choices that rows may show and ask for.
        events: what is known of each choice, row by row as in `walks.item_index`: `timestamp`,
            `rating`, `review_text`, `review_title` where the data have them, and nothing of a
            choice that is not in the walks.
        user_ids: the outside id of each user_index.
        user_sids: each user's semantic ids in user_index order, "" for one without; None where no
            tokenizer of users was given.
        recipe: every other value that tasks read.
        max_history: most items that a row shows.
        seed: the recipe's, mixed with the pass, for `chance`.
        users: the users' table, in user_index order, for columns that a data artefact of one's own
            may have beside the ids.
    """

    items: pl.DataFrame
    sids: list[SidText]
    walks: Walks
    events: pl.DataFrame
    user_ids: list[str]
    user_sids: list[SidText] | None
    recipe: PromptsRecipe
    max_history: int
    seed: int = 0
    users: pl.DataFrame = field(default_factory=pl.DataFrame)
    _cache: dict[str, Any] = field(default_factory=dict)

    @property
    def max_text_characters(self) -> int:
        """The longest that one value of data may be."""
        return self.recipe.max_text_characters

    @property
    def has_sids(self) -> bool:
        """Whether items have semantic ids that rows can show."""
        return bool(self.sids[:1] and self.sids[0])

    def texts(self, column: str) -> list[CleanText]:
        """A column of the catalogue, cleaned, in item_index order; empty where there is none."""
        return self.remember(
            f"items.{column}", lambda: self._clean(self.items, column, len(self.sids))
        )

    def event_texts(self, column: str) -> list[CleanText]:
        """A column of the choices, cleaned, by place in the walks; empty where there is none."""
        n_choices = len(self.walks.item_index)
        return self.remember(
            f"events.{column}", lambda: self._clean(self.events, column, n_choices)
        )

    def user_texts(self, column: str) -> list[CleanText]:
        """A column of the users' table, cleaned, in user_index order; empty where there is none."""
        n_users = len(self.user_ids)
        return self.remember(f"users.{column}", lambda: self._clean(self.users, column, n_users))

    def event_numbers(self, column: str) -> NDArray[np.float64]:
        """A column of the choices as (M,) float64, NaN where the data have no value."""
        if column not in self.events.columns:
            return np.full(len(self.walks.item_index), np.nan)
        values = self.events.get_column(column).cast(pl.Float64)
        return np.asarray(values.fill_null(np.nan).to_numpy(), dtype=np.float64)

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returns, made once for this corpus; keys of tasks begin with their name."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def with_pass(self, number: int) -> Corpus:
        """The same corpus, its chance that of another pass; what is cached is kept."""
        return replace(self, seed=self.recipe.seed * 1009 + number)

    def _clean(self, table: pl.DataFrame, column: str, n_rows: int) -> list[CleanText]:
        if column not in table.columns:
            return [CleanText("")] * n_rows
        values = table.get_column(column)
        if values.dtype.is_float():
            values = values.map_elements(lambda value: f"{value:.2f}", return_dtype=pl.String)
        texts = values.cast(pl.String).fill_null("")
        reviews = column in REVIEW_COLUMNS
        most = self.recipe.max_review_characters if reviews else self.max_text_characters
        return [clean_text(text, most) for text in texts]


def read_corpus(
    recipe: PromptsRecipe,
    dataset: Dataset,
    tokenizer: str | Path,
    users: str | Path | None = None,
) -> tuple[Corpus, dict[str, Artifact]]:
    """The corpus of the training choices, and the artefacts it was read from by role.

    Args:
        recipe: limits and seed.
        dataset: the data artefact.
        tokenizer: the items' tokenizer artefact.
        users: a tokenizer artefact of the same data's users, as `genrec tokenize ulmrec-users`
            makes it; None leaves the templates off that need user ids.

    Raises:
        ArtifactError: a tokenizer artefact is unusable, or made for other items or users.
    """
    artifact = load_artifact(tokenizer, step="tokenize")
    inputs = {"data": dataset.artifact, "tokenize": artifact}
    sids = _match_sids(artifact.path / CODES_FILE, dataset, tokens=_has_tokens(artifact))
    users_table = dataset.users.sort("user_index")
    user_ids = users_table["user_id"].to_list()
    user_sids = None
    if users is not None:
        inputs["users"] = load_artifact(users, step="tokenize")
        user_sids = match_user_sids(inputs["users"], user_ids)
    walks, events = _read_walks(dataset)
    corpus = Corpus(
        items=dataset.items,
        sids=sids,
        walks=walks,
        events=events,
        user_ids=user_ids,
        user_sids=user_sids,
        recipe=recipe,
        max_history=_inherit_max_history(recipe, dataset),
        seed=recipe.seed,
        users=users_table,
    )
    return corpus, inputs


def _read_walks(dataset: Dataset) -> tuple[Walks, pl.DataFrame]:
    """The training choices, and what is known of each."""
    train = dataset.sequences(("train",))
    chosen = dataset.interactions["split"] == "train"
    table = (
        dataset.interactions.hstack(dataset.reviews())
        if dataset.has_reviews
        else (dataset.interactions)
    )
    present = [name for name in EVENT_COLUMNS if name in table.columns]
    return Walks(train.user_index, train.offsets, train.item_index), table.filter(chosen).select(
        present
    )


def match_user_sids(artifact: Artifact, user_ids: Sequence[str]) -> list[SidText]:
    """Each user's semantic ids from a tokenizer of users; "" for a user it does not hold.

    Raises:
        ArtifactError: it holds no user of this data, or ids that are no users' ids.
    """
    table = pl.read_parquet(artifact.path / CODES_FILE, columns=["item_id", "sid"])
    sid_of = dict(zip(table["item_id"].to_list(), table["sid"].to_list(), strict=True))
    found = [sid_of.get(user_id, "") for user_id in user_ids]
    if not any(found):
        raise ArtifactError(
            f"tokenizer {artifact.path} holds none of the data's {len(user_ids):,} users (its "
            f"first id is {next(iter(sid_of), None)!r}); make it from this data: `genrec embed "
            f"subject=users`, then `genrec tokenize ulmrec-users`"
        )
    try:
        return [check_user_sid(sid) if sid else SidText("") for sid in found]
    except DataError as error:
        raise ArtifactError(f"{artifact.path}: {error}") from error


def _has_tokens(artifact: Artifact) -> bool:
    """Whether IDs are tokens such as <a_12>, rather than titles, which are text from data."""
    config = artifact.path / "config.json"
    return not config.is_file() or bool(read_json(config).get("spelled", True))


def hold_out_valid(corpus: Corpus, dataset: Dataset) -> Corpus:
    """The same corpus, its walks now each user's training choices and then the validation item.

    It knows no rating and no review of any choice.
    """
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
        events=pl.DataFrame(),
        _cache={},
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


def _match_sids(path: Path, dataset: Dataset, *, tokens: bool) -> list[SidText]:
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
    if not tokens:
        return [SidText("")] * len(dataset.item_ids)
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

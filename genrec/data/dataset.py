"""The data artefact, read back: items, users, and histories as arrays.

Owns what later steps ask of the data. Knows no source format and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from genrec.artifact import Artifact, load_artifact
from genrec.data.log import REVIEW_COLUMNS
from genrec.types import IndexArray, RankedItems

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True)
class Sequences:
    """What each user chose, oldest first, as one flat array.

    Shapes:
        user_index: (U,) int64, rising; users without any choice are left out.
        offsets: (U + 1,) int64; user u's choices are item_index[offsets[u] : offsets[u + 1]].
        item_index: (M,) int64.
    """

    user_index: IndexArray
    offsets: IndexArray
    item_index: IndexArray

    def histories(self) -> list[IndexArray]:
        """One array of item_index a user, oldest first."""
        return np.split(self.item_index, self.offsets[1:-1]) if len(self.user_index) else []


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Users with what they chose before, and what they chose next.

    Shapes:
        user_index: (U,) int64, rising.
        histories: U arrays, oldest first, each at least one long.
        targets: U arrays, oldest first; exactly one long for leave-last-out.
    """

    user_index: IndexArray
    histories: list[IndexArray]
    targets: list[IndexArray]
    n_without_target: int
    n_without_history: int


class Dataset:
    """A data artefact, its tables read when first asked for."""

    def __init__(self, artifact: Artifact) -> None:
        """Wrap a loaded artefact; use `load_dataset`."""
        self.artifact = artifact

    @cached_property
    def items(self) -> pl.DataFrame:
        """The items, row order = item_index."""
        return pl.read_parquet(self.artifact.path / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """The users, row order = user_index."""
        return pl.read_parquet(self.artifact.path / "users.parquet")

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """Who chose what, by user and time, without the review texts."""
        scan = pl.scan_parquet(self.artifact.path / "interactions.parquet")
        present = scan.collect_schema().names()
        return scan.select(name for name in present if name not in REVIEW_COLUMNS).collect()

    @property
    def has_reviews(self) -> bool:
        """Whether the source had review texts and the recipe kept them."""
        schema = pl.read_parquet_schema(self.artifact.path / "interactions.parquet")
        return REVIEW_COLUMNS[0] in schema

    def reviews(self) -> pl.DataFrame:
        """review_text and review_title, row by row as in `interactions`; no columns if unknown."""
        columns = list(REVIEW_COLUMNS) if self.has_reviews else []
        return pl.read_parquet(self.artifact.path / "interactions.parquet", columns=columns)

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The outside id of each item_index."""
        return tuple(self.items["item_id"])

    @property
    def n_items(self) -> int:
        """The size of the catalogue."""
        return self.items.height

    @property
    def n_users(self) -> int:
        """The number of users."""
        return self.users.height

    def sequences(self, splits: Sequence[Split] = ("train",)) -> Sequences:
        """Each user's choices in these parts of the split, oldest first."""
        rows = self.interactions.filter(pl.col("split").is_in(list(splits)))
        user_index, first = np.unique(rows["user_index"].to_numpy(), return_index=True)
        return Sequences(
            user_index=user_index.astype(np.int64),
            offsets=np.append(first, rows.height).astype(np.int64),
            item_index=rows["item_index"].to_numpy().astype(np.int64),
        )

    def holdout(self, split: Literal["valid", "test"] = "test") -> HoldOut:
        """What is to be predicted in a part of the split, with each user's history before it.

        The history of test holds train and valid. Users without a target, or without a history
        before it, are left out and counted.
        """
        before: tuple[Split, ...] = ("train", "valid") if split == "test" else ("train",)
        past, future = self.sequences(before), self.sequences((split,))
        user_index, past_at, future_at = np.intersect1d(
            past.user_index, future.user_index, assume_unique=True, return_indices=True
        )
        histories, targets = past.histories(), future.histories()
        return HoldOut(
            user_index=user_index,
            histories=[histories[place] for place in past_at],
            targets=[targets[place] for place in future_at],
            n_without_target=self.n_users - len(future.user_index),
            n_without_history=len(future.user_index) - len(user_index),
        )

    def oracle(self) -> RankedItems | None:
        """The best possible ranking for each user of `holdout("test")`, where it is known.

        Scores are probabilities; rows shorter than the longest end in -1 and -inf.
        """
        path = self.artifact.path / "oracle.parquet"
        if not path.exists():
            return None
        users = pl.DataFrame({"user_index": self.holdout("test").user_index})
        known = users.join(
            pl.read_parquet(path), on="user_index", how="left", maintain_order="left"
        )
        ranked = [items or [] for items in known["item_index"].to_list()]
        chances = [values or [] for values in known["probability"].to_list()]
        width = max(map(len, ranked), default=0)
        item_index = np.full((len(ranked), width), -1, dtype=np.int64)
        scores = np.full((len(ranked), width), -np.inf, dtype=np.float32)
        for row, (items, values) in enumerate(zip(ranked, chances, strict=True)):
            item_index[row, : len(items)] = items
            scores[row, : len(values)] = values
        certified = np.array([bool(items) for items in ranked], dtype=np.bool_)
        return RankedItems(item_index, scores, certified)


def load_dataset(path: str | Path) -> Dataset:
    """The data artefact at `path`.

    Raises:
        ArtifactError: missing, half written, of another step, or changed since.
    """
    return Dataset(load_artifact(path, step="data"))

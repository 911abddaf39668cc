"""What a vocabulary is fitted to: vectors, and whatever else a quantizer asks for.

Owns reading it from the artefacts and the checks that it belongs together. Knows no quantizer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifact import Artifact
from genrec.data.dataset import Dataset, Split, load_dataset
from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.embedding.embed import Embeddings, load_embeddings
from genrec.tokenizers.vectors import VectorRows
from genrec.types import IndexArray

VECTORS, DATA = "vectors", "data"
"""What a quantizer can need: embeddings, or a data artefact."""


@dataclass(frozen=True)
class FitInput:
    """The items (or users) that get codes, row i for `item_ids[i]`.

    Shapes:
        vectors: (N, D) float32 rows, read when asked for; None for a quantizer that needs none.
        data_rows: (N,) int64, each item's row in the data; None where they are all and in order.
    """

    item_ids: tuple[str, ...]
    vectors: VectorRows | None = None
    dataset: Dataset | None = None
    data_rows: IndexArray | None = None
    subject: str = "items"
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def rows(self) -> VectorRows:
        """The vectors, where they were given."""
        assert self.vectors is not None, "a quantizer that needs vectors says so"
        return self.vectors

    @property
    def dimensions(self) -> int:
        """D; 0 without vectors."""
        return 0 if self.vectors is None else int(self.vectors.shape[1])

    @property
    def catalogue(self) -> Dataset:
        """The data, where it was given."""
        assert self.dataset is not None, "a quantizer that needs data says so"
        return self.dataset

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """Each item's title; empty where it has none."""
        return self.read_column("title")

    def read_column(self, name: str) -> tuple[str, ...]:
        """A text column of the items; empty where an item has none.

        Raises:
            DataError: the items have no such column, or these are users.
        """
        self._check_items(f"the items' column {name!r}")
        items = self.catalogue.items
        if name not in items.columns:
            raise DataError(
                f"the items of {self.catalogue.artifact.path} have no column {name!r}; they have "
                f"{', '.join(items.columns)} (the data recipe's item_columns adds one)"
            )
        values = [value or "" for value in items[name].cast(pl.String).to_list()]
        if self.data_rows is None:
            return tuple(values)
        return tuple(values[row] for row in self.data_rows.tolist())

    def histories(self, splits: tuple[Split, ...] = ("train",)) -> list[IndexArray]:
        """What each user chose of these items in parts of the split, oldest first, as rows.

        Raises:
            DataError: these are users.
        """
        self._check_items("who chose which item")
        histories = self.catalogue.sequences(splits).histories()
        if self.data_rows is None:
            return histories
        place = np.full(self.catalogue.n_items, -1, dtype=np.int64)
        place[self.data_rows] = np.arange(self.n_items)
        return [place[history][place[history] >= 0] for history in histories]

    def _check_items(self, what: str) -> None:
        if self.subject != "items":
            raise DataError(
                f"these embeddings hold {self.subject}, but {what} says something of items only; "
                f"give embeddings of items, or use a quantizer that looks at vectors alone"
            )

    def select_items(self, rows: IndexArray) -> FitInput:
        """The same input for some of the items only."""
        rows = np.asarray(rows, dtype=np.int64)
        vectors = None if self.vectors is None else self.vectors[rows]
        data_rows = rows if self.data_rows is None else self.data_rows[rows]
        ids = tuple(self.item_ids[row] for row in rows.tolist())
        return replace(self, item_ids=ids, vectors=vectors, data_rows=data_rows)


def read_input(
    needs: Collection[str], embeddings: Path | None, data: Path | None, *, who: str
) -> FitInput:
    """What a quantizer is fitted to, from the artefacts that were given.

    Args:
        needs: `VECTORS`, `DATA` or both: what the quantizer cannot do without.
        embeddings: an `embeddings/` artefact.
        data: a `data/` artefact.
        who: the quantizer's name, for messages.

    Raises:
        DataError: something that is needed was not given.
        ArtifactError: an artefact is unusable, or the two hold different items.
    """
    missing = [
        f"{option} (output of `genrec {step}`)"
        for need, option, step, given in (
            (VECTORS, "--embeddings", "embed", embeddings),
            (DATA, "--data", "data", data),
        )
        if need in needs and given is None
    ]
    if embeddings is None and data is None and not missing:
        missing = ["--data or --embeddings, to know the items"]
    if missing:
        raise DataError(f"quantizer {who!r} needs {' and '.join(missing)}")
    source = load_embeddings(embeddings) if embeddings is not None else None
    dataset = load_dataset(data) if data is not None else None
    artifacts = {}
    if source is not None:
        artifacts["embed"] = source.artifact
    if dataset is not None:
        artifacts["data"] = dataset.artifact
    if source is None:
        assert dataset is not None, "one of the two was given"
        return FitInput(dataset.item_ids, dataset=dataset, artifacts=artifacts)
    if dataset is not None:
        _check_same(source, dataset)
    return FitInput(
        source.item_ids,
        source.vectors,
        dataset,
        subject=source.subject,
        artifacts=artifacts,
    )


def _check_same(source: Embeddings, dataset: Dataset) -> None:
    """Raise unless embeddings and data hold the same items, or users, in the same order."""
    users = source.subject == "users"
    known = set(dataset.users["user_id"]) if users else dataset.item_ids
    same = set(source.item_ids) <= set(known) if users else source.item_ids == known
    if not same:
        raise ArtifactError(
            f"{source.artifact.path} holds {len(source.item_ids):,} {source.subject}, which are "
            f"not those of {dataset.artifact.path} ({len(known):,}); make both from the same data"
        )

"""The values that a `data` step is made of.

Owns the recipe class and the checks that need no file. Loads neither polars nor torch, so that the
command line can show and check recipes at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from genrec.recipe import Recipe, suggest_name

INTERACTION_COLUMNS = (
    "user_id",
    "item_id",
    "timestamp",
    "rating",
    "position",
    "review_text",
    "review_title",
)
ITEM_COLUMNS = ("item_id", "title", "brand", "categories", "description", "price")
RESERVED_COLUMNS = ("item_index", "text")
_SHARE = "as a share of all interactions, latest last"


class DataRecipe(Recipe):
    """How raw files become items, interactions and a split."""

    source: str = Field(
        default="synthetic",
        description="amazon2014, amazon2018, amazon2023, movielens, recbole, table, synthetic, "
        "or your own as my_package.module:function.",
    )
    path: str | None = Field(
        default=None, description="Folder (or RecBole prefix) in which the source finds its files."
    )
    interactions: str | None = Field(
        default=None, description="File of who chose what; overrides what `path` would find."
    )
    items: str | None = Field(
        default=None, description="File that describes the items; overrides what `path` would find."
    )
    columns: dict[str, str] = Field(
        default={},
        description="Our column -> the file's, for interactions: user_id, item_id, timestamp, "
        "rating, position (an explicit order), review_text, review_title.",
    )
    item_columns: dict[str, str] = Field(
        default={},
        description="Our column -> the file's, for items: item_id, title, brand, categories, "
        "description, price; any other name becomes an extra text column.",
    )
    separator: str | None = Field(
        default=None, min_length=1, description="Between columns; None goes by the file's ending."
    )
    header: tuple[str, ...] | None = Field(
        default=None, description="Column names of an interactions file without a header line."
    )
    item_header: tuple[str, ...] | None = Field(
        default=None, description="Column names of an items file without a header line."
    )
    encoding: str = Field(default="utf-8", description="Of text files.")
    timestamp_unit: Literal["seconds", "milliseconds", "microseconds", "iso"] = Field(
        default="seconds",
        description="For source `table`: what a timestamp is written in; iso means 2024-05-01 or "
        "2024-05-01T10:00:00+02:00 (UTC where no offset is given).",
    )
    text_fields: tuple[str, ...] = Field(
        default=("title", "brand", "categories", "description"),
        min_length=1,
        description="What an item's text is made of, in this order, as `title: ...; brand: ...`.",
    )
    max_field_chars: int | None = Field(
        default=2000, ge=1, description="Longer fields are cut in the item's text; None: never."
    )
    items_without_metadata: Literal["keep", "drop"] = Field(
        default="keep",
        description="Items that are chosen but not described: keep with empty text, or drop.",
    )
    cold_items: bool | None = Field(
        default=None,
        description="Keep described items without interactions, whether nobody chose them or a "
        "filter took them; None: only for the synthetic source.",
    )
    deduplicate: Literal["none", "exact", "pairs"] = Field(
        default="exact",
        description="exact: rows equal in all that was read; pairs: only the first row of each "
        "user and item, the earliest in order.",
    )
    min_rating: float | None = Field(
        default=None, description="Drop interactions rated lower (unrated ones stay)."
    )
    k_core_users: int = Field(
        default=0, ge=0, description="Keep users with at least this many interactions; 0: all."
    )
    k_core_items: int = Field(
        default=0, ge=0, description="Keep items with at least this many interactions; 0: all."
    )
    users: int | None = Field(
        default=None,
        ge=1,
        description="A seeded sample of so many users, drawn after the filters; None: all.",
    )
    split: Literal["leave-last-out", "temporal"] = Field(
        default="leave-last-out",
        description="leave-last-out: each user's last is test, the one before valid; temporal: "
        "one moment for all users.",
    )
    valid_fraction: float = Field(default=0.1, gt=0, lt=1, description=f"Temporal: {_SHARE}.")
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description=f"Temporal: {_SHARE}.")
    valid_from: float | str | None = Field(
        default=None, description="Temporal: first moment of valid, seconds or ISO date."
    )
    test_from: float | str | None = Field(
        default=None, description="Temporal: first moment of test, seconds or ISO date."
    )
    max_history: int | None = Field(
        default=None,
        ge=1,
        description="Keep each user's latest N training interactions; None: all.",
    )
    reviews: bool = Field(
        default=True, description="Keep review texts where the source has them (the largest part)."
    )
    n_items: int = Field(default=1500, ge=10, description="Synthetic: size of the catalogue.")
    n_users: int = Field(default=3000, ge=1, description="Synthetic: number of users.")

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        problems = [*self._column_problems(), *self._split_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _column_problems(self) -> Iterator[str]:
        for name in sorted(set(self.columns) - set(INTERACTION_COLUMNS)):
            yield f"columns: unknown {name!r}, {suggest_name(name, INTERACTION_COLUMNS)}"
        for name in sorted(set(self.item_columns) & set(RESERVED_COLUMNS)):
            yield f"item_columns: {name!r} is a column that genrec writes; choose another name"
        known = {*ITEM_COLUMNS, *self.item_columns}
        for name in self.text_fields:
            if name not in known:
                yield (
                    f"text_fields: unknown {name!r}, {suggest_name(name, known)} "
                    f"(an extra column is declared in item_columns)"
                )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            yield f"encoding: {self.encoding!r} is none that Python knows; try utf-8 or latin-1"

    def _split_problems(self) -> Iterator[str]:
        if self.valid_fraction + self.test_fraction >= 1:
            yield "valid_fraction + test_fraction must leave something to train on (below 1)"
        if (self.valid_from is None) != (self.test_from is None):
            yield "valid_from and test_from go together: give both, or neither"
        try:
            moments = self.moments
        except ValueError as error:
            yield f"valid_from, test_from: {error}; write seconds or an ISO date like 2024-05-01"
        else:
            if moments is not None and moments[0] >= moments[1]:
                yield "valid_from must lie before test_from"
            if moments is not None and self.split != "temporal":
                yield "valid_from and test_from need split: temporal"

    @property
    def moments(self) -> tuple[float, float] | None:
        """The first moments of valid and test, in seconds since 1970, where they are given."""
        if self.valid_from is None or self.test_from is None:
            return None
        return parse_moment(self.valid_from), parse_moment(self.test_from)


def parse_moment(value: float | str) -> float:
    """Seconds since 1970, UTC, of a number or an ISO date; without an offset it is read as UTC.

    Raises:
        ValueError: the text is neither.
    """
    try:
        return float(value)
    except ValueError:
        moment = datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()

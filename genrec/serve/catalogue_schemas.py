"""What goes in and out of the catalogue's routes, as typed clients see it.

Owns the shapes and their bounds. Knows no store.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from genrec.serve.schemas import Body, ItemId

_Words = Annotated[str, StringConstraints(max_length=20_000)]
_Ids = Annotated[list[ItemId], Field(min_length=1, max_length=10_000)]
_Unknown = Annotated[
    Literal["error", "skip"], Field(description="What to do with ids that the catalogue lacks.")
]


class CatalogItem(Body):
    """An item as it is described; the text that its codes come from is made of these fields."""

    item_id: ItemId
    title: _Words = Field(examples=["Red suede nail lacquer"])
    brand: _Words = ""
    categories: _Words = Field("", examples=["Beauty > Makeup > Nails"])
    description: _Words = ""
    price: float | _Words | None = None
    embedding: list[float] | None = Field(
        None,
        max_length=16_384,
        description="The item's vector, for encoders that the server cannot run; it takes the "
        "place of the text. As wide, and from the same encoder, as those of the tokenizer.",
    )
    available: bool | None = Field(
        None, description="Whether it can be had; unset leaves that, and a new item can."
    )


class CatalogAddRequest(Body):
    """Items to add, or to describe anew."""

    items: list[CatalogItem] = Field(min_length=1, max_length=1000)


class CatalogRemoveRequest(Body):
    """Items to remove."""

    item_ids: _Ids
    unknown: _Unknown = "error"


class CatalogAvailability(Body):
    """Whether one item can be had."""

    item_id: ItemId
    available: bool


class CatalogAvailabilityRequest(Body):
    """Which items can be had from now on."""

    items: list[CatalogAvailability] = Field(min_length=1, max_length=10_000)
    unknown: _Unknown = "error"


class CatalogRollbackRequest(Body):
    """Which version to bring back."""

    version: int = Field(ge=1, le=2**53)


class CatalogEntry(BaseModel):
    """What became of an item that was given."""

    item_id: str
    sid: str = Field(description="Its semantic id.", examples=["<a_12><b_7><c_3>"])
    status: Literal["added", "returned", "updated", "unchanged"]


class CatalogChange(BaseModel):
    """What a change came to. It is on disk, and every later request sees it."""

    request_id: str
    version: int = Field(description="The current one; the one before if nothing differed.")
    items: int = Field(description="How many items it has.")
    results: list[CatalogEntry] = Field(description="Of added items, in their order.")
    removed: list[str]
    switched: int = Field(description="How many items became available, or no longer are.")


class CatalogVersion(BaseModel):
    """One version of the catalogue."""

    version: int
    time: str = Field(description="When it was made, UTC.", examples=["2026-11-24T15:24:22Z"])
    action: Literal["start", "add", "remove", "availability", "rollback"]
    items: int
    added: int
    updated: int
    removed: int
    switched: int
    content_of: int | None = Field(description="The version that a rollback brought back.")


class CatalogState(BaseModel):
    """The current version."""

    version: int
    items: int
    unavailable: int
    oldest_version: int = Field(description="The oldest that can be brought back.")
    changed: str = Field(description="When the current version was made, UTC.")


class CatalogVersions(BaseModel):
    """Versions that can be brought back, the newest first."""

    versions: list[CatalogVersion]

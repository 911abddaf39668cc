"""What goes in and out over HTTP, as typed clients see it.

Owns the shapes and their widest bounds; a server's own, narrower limits are in its settings. Knows
no engine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

ItemId = Annotated[
    str, StringConstraints(min_length=1, max_length=512), Field(examples=["B000142FVW"])
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000, pattern=r"\S")]


class Body(BaseModel):
    """A request's part: nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ItemEntry(Body):
    """An item of the catalogue."""

    item_id: ItemId


class TextEntry(Body):
    """Something that is not in the catalogue, by its text."""

    text: Text = Field(examples=["Red suede nail lacquer"])


class RecommendFilters(Body):
    """What may be answered; every condition that is given must hold."""

    allow: list[ItemId] | None = Field(
        None, max_length=100_000, description="The only items that may be answered."
    )
    deny: list[ItemId] = Field([], max_length=100_000, description="Items that may not.")
    categories: list[Name] = Field(
        [], max_length=100, description="An item needs at least one of these in its path."
    )
    exclude_seen: bool = Field(True, description="Leave the history's own items out.")


class RecommendRequest(Body):
    """Whose next items are wanted, which may be answered, and how they are searched for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["B000142FVW", "B00014351Q"], "k": 5},
                {
                    "history": [{"item_id": "B000142FVW"}, {"text": "Red suede nail lacquer"}],
                    "k": 5,
                    "filters": {"categories": ["Makeup"]},
                    "explain": True,
                },
            ]
        }
    )

    history: list[ItemId | ItemEntry | TextEntry] = Field(
        min_length=1, max_length=10_000, description="What the user chose, oldest first."
    )
    user_id: Name | None = Field(None, description="For models whose prompts say who the user is.")
    k: int = Field(10, ge=1, le=10_000, description="How many items; fewer only if fewer may be.")
    unknown: Literal["error", "skip"] = Field(
        "error", description="What to do with ids of the history that the catalogue lacks."
    )
    filters: RecommendFilters = RecommendFilters()
    width: int | None = Field(
        None, ge=1, le=100_000, description="Beams of the search, at least k; 2.5 k unless told."
    )
    normalize: Literal["vocab", "level", "child"] = Field(
        "vocab", description="What a code's probability is relative to."
    )
    exact: bool = Field(False, description="Search on until the list is proven.")
    max_evaluations: int = Field(
        2000, ge=1, le=1_000_000, description="After so many prefixes an exact search gives up."
    )
    groups: int = Field(1, ge=1, le=1000, description="Groups of beams that avoid each other.")
    diversity: float = Field(
        0.0, ge=0, le=1000, description="How much they do; nothing with one group."
    )
    length_penalty: float = Field(
        0.0, ge=0, le=10, description="For ids of different lengths: 0 ranks by sums, 1 by means."
    )
    adapter: Name | None = Field(None, description="Which adapter; the model as trained if unset.")
    domain: Name | None = Field(None, description="The adapter of this domain.")
    explain: bool = Field(False, description="Add a reason to each item, in words.")
    timeout_seconds: float | None = Field(
        None, gt=0, le=3600, description="Answer by then or with 504; the server's limit if unset."
    )


class RecommendedItem(BaseModel):
    """One answer."""

    item_id: str
    title: str
    score: float = Field(description="Log-probability; higher is better.")
    rank: int = Field(description="From 1.")
    sid: str = Field(description="The item's semantic id.", examples=["<a_12><b_7><c_3>"])
    reason: str | None = Field(None, description="Why, in generated words; with `explain` only.")


class RecommendAnswer(BaseModel):
    """The best items that may be answered, best first."""

    request_id: str
    version: int = Field(description="Of the catalogue that was searched.")
    items: list[RecommendedItem]
    certified: bool = Field(description="No item left out can score above the last one.")
    bound: float | None = Field(
        description="No item left out scores above this; null if none is left unexplored."
    )
    evaluations: int = Field(description="Prefixes that the model was asked about.")
    reason_source: Literal["trained", "untrained"] | None = Field(
        None,
        description="With `explain`: whether the model was trained to give reasons, or a language "
        "model was asked that never was. Either way they are generated, and can be wrong.",
    )
    timings_ms: dict[str, float] = Field(
        description="Time by stage.", examples=[{"encode": 0.8, "queue": 0.1, "search": 21.0}]
    )


class Fault(BaseModel):
    """One field that is not as it should be."""

    where: str = Field(examples=["body.history.3"])
    rule: str


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Fault] = []


class BatchRequest(Body):
    """Requests that are answered together; each may fail on its own."""

    # Each is checked when its turn comes, so that one that is wrong does not fail the others.
    requests: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/components/schemas/RecommendRequest"},
            }
        ),
    ] = Field(min_length=1, max_length=100_000)


class BatchEntry(BaseModel):
    """What came of one request of a batch: an answer or an error."""

    index: int = Field(description="Which request, from 0.")
    answer: RecommendAnswer | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """One entry a request, in their order."""

    request_id: str
    results: list[BatchEntry]


class ServerState(BaseModel):
    """How the server is."""

    state: Literal["starting", "ready", "restarting", "draining", "failed"]
    version: int = Field(description="Of the catalogue.")
    items: int
    adapters: list[str]
    domains: list[str]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"

"""The playground's page, and the routes that only it and the curious need.

Owns what they say and how much of it. Knows no search.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import genrec.html_page
from genrec.decode.trace import TracedPrefix
from genrec.decode.trie import Trie
from genrec.errors import DecodeError
from genrec.serve.answers import trace_request
from genrec.serve.backend import Edition
from genrec.serve.playground.explore import (
    Branch,
    FoundItem,
    describe_item,
    find_items,
    list_branches,
    name_items,
)
from genrec.serve.problems import ProblemError
from genrec.serve.recommend_routes import PROBLEMS
from genrec.serve.schemas import RecommendRequest
from genrec.serve.service import Service

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "page.css": (Path(genrec.html_page.__file__).with_name("page.css"), "text/css"),
    "playground.css": (_STATIC / "playground.css", "text/css"),
    "playground.js": (_STATIC / "playground.js", "text/javascript"),
}
# Nothing but the server's own files, and no page around ours.
_GUARDS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_NO_PREFIX: dict[int | str, dict[str, Any]] = {
    404: {**PROBLEMS[422], "description": "No item has this prefix, or nothing is below it."}
}
_MOST_ITEMS, _MOST_CATEGORIES, _MOST_BRANCHES = 100, 500, 2000


class ServerFacts(BaseModel):
    """What a page needs to know of the server before it asks."""

    model: str
    engine: str
    n_items: int
    version: int
    max_k: int
    max_width: int
    categories: list[str]
    adapters: list[str]
    needs_users: bool
    has_codes: bool


class ItemSummary(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str
    sid: str
    categories: str


class ItemList(BaseModel):
    """Items, best match first."""

    version: int
    items: list[ItemSummary]


class CodeBranch(BaseModel):
    """A code that may follow a prefix."""

    code: int
    n_items: int = Field(description="Items below.")
    examples: list[str] = Field(description="Titles of a few of them.")
    item: ItemSummary | None = Field(None, description="The item, where the sequence is complete.")


class CodeLevel(BaseModel):
    """What may follow a prefix."""

    version: int
    n_levels: int
    n_items: int = Field(description="Items below the prefix.")
    branches: list[CodeBranch]


class BeamPrefix(BaseModel):
    """A prefix that a search scored."""

    codes: list[int]
    score: float = Field(description="Log-probability so far.")
    kept: bool = Field(description="The search went on from it; of complete ones: an answer.")
    n_items: int
    examples: list[str]
    title: str | None = Field(None, description="The item's, where the sequence is complete.")


class Beam(BaseModel):
    """The prefixes of a search, level by level, best first."""

    version: int
    levels: list[list[BeamPrefix]]


def build_router(service: Service) -> APIRouter:
    """The playground of a service."""
    router = APIRouter(tags=["playground"])
    _add_pages(router)
    v1 = APIRouter(prefix="/v1", tags=["playground"], responses=PROBLEMS)
    _add_facts(v1, service)
    _add_trees(v1, service)
    router.include_router(v1)
    return router


def _add_pages(router: APIRouter) -> None:
    @router.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return FileResponse(_STATIC / "index.html", media_type="text/html", headers=_GUARDS)

    @router.get("/playground/{name}", include_in_schema=False)
    async def show_file(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        path, kind = _FILES[name]
        return FileResponse(path, media_type=kind, headers=_GUARDS)


def _add_facts(v1: APIRouter, service: Service) -> None:
    @v1.get("/playground", summary="The server's facts and limits")
    async def describe_server() -> ServerFacts:
        """Sizes, limits and names that a page shows before it asks anything."""
        edition = service.edition
        catalogue = edition.recommender.catalogue
        masks = await service.run_apart(lambda: catalogue.category_masks)
        return ServerFacts(
            model=service.settings.model_name,
            engine=service.backend.name,
            n_items=catalogue.n_items,
            version=edition.version,
            max_k=min(service.settings.max_k, catalogue.n_items),
            max_width=service.settings.max_width,
            categories=sorted(masks)[:_MOST_CATEGORIES],
            adapters=list(service.backend.adapters),
            needs_users=edition.recommender.needs_users,
            has_codes=_find_trie(edition) is not None,
        )

    @v1.get("/items", summary="Find items by words of their titles, or by id")
    async def list_items(
        q: Annotated[str, Query(max_length=200, description="Every word must be there.")] = "",
        limit: Annotated[int, Query(ge=1, le=_MOST_ITEMS)] = 20,
        sample: Annotated[
            int | None, Query(ge=1, le=_MOST_ITEMS, description="Any so many items instead.")
        ] = None,
    ) -> ItemList:
        """Those whose title begins with the words come first, then short titles."""
        edition = service.edition
        catalogue = edition.recommender.catalogue
        if sample is None:
            found = await service.run_apart(find_items, catalogue, q, limit)
        else:
            rows = random.sample(range(catalogue.n_items), min(sample, catalogue.n_items))
            found = [describe_item(catalogue, row) for row in rows]
        return ItemList(version=edition.version, items=[_show_item(item) for item in found])


def _add_trees(v1: APIRouter, service: Service) -> None:
    @v1.get("/codes", summary="Walk the tree of codes", responses=_NO_PREFIX)
    async def list_codes(
        prefix: Annotated[
            str,
            Query(pattern=r"^(\d{1,9}(\.\d{1,9}){0,63})?$", description="Codes, as in 12.7."),
        ] = "",
    ) -> CodeLevel:
        """The codes that may follow a prefix, and what lies below each."""
        edition = service.edition
        trie = _find_trie(edition)
        if trie is None:
            raise ProblemError(
                HTTPStatus.NOT_FOUND, "this model's items have titles for ids, and no codes"
            )
        codes = [int(code) for code in prefix.split(".") if code]
        try:
            branches = await service.run_apart(
                list_branches, edition.recommender.catalogue, trie, codes
            )
        except DecodeError as error:
            raise ProblemError(HTTPStatus.NOT_FOUND, str(error)) from error
        return CodeLevel(
            version=edition.version,
            n_levels=trie.n_levels,
            n_items=sum(branch.n_items for branch in branches),
            branches=[_show_branch(branch) for branch in branches[:_MOST_BRANCHES]],
        )

    @v1.post("/beam", summary="The search behind a recommendation")
    async def show_beam(body: RecommendRequest) -> Beam:
        """The prefixes that the search for the same request keeps, and the best that it leaves."""
        edition, trace = await trace_request(service, body)
        return await service.run_apart(_show_trace, edition, trace.levels)


def _find_trie(edition: Edition) -> Trie | None:
    """The trie of codes; None for an engine whose items have none."""
    trie = getattr(edition.recommender.engine, "trie", None)
    return trie if isinstance(trie, Trie) else None


def _show_item(item: FoundItem) -> ItemSummary:
    return ItemSummary(**asdict(item))


def _show_branch(branch: Branch) -> CodeBranch:
    return CodeBranch(
        code=branch.code,
        n_items=branch.n_items,
        examples=list(branch.examples),
        item=None if branch.item is None else _show_item(branch.item),
    )


def _show_trace(edition: Edition, levels: Sequence[Sequence[TracedPrefix]]) -> Beam:
    trie, catalogue = _find_trie(edition), edition.recommender.catalogue
    assert trie is not None, "only searches over a trie of codes are traced"
    shown = []
    for level, prefixes in enumerate(levels, start=1):
        nodes = np.array([prefix.node for prefix in prefixes], dtype=np.int64)
        first, end = trie.leaf_ranges(level, nodes)
        row = []
        for prefix, start, stop in zip(prefixes, first.tolist(), end.tolist(), strict=True):
            titles = name_items(catalogue, trie, start, stop)
            row.append(
                BeamPrefix(
                    codes=list(prefix.codes),
                    score=prefix.score,
                    kept=prefix.kept,
                    n_items=stop - start,
                    examples=list(titles),
                    title=titles[0] if level == trie.n_levels else None,
                )
            )
        shown.append(row)
    return Beam(version=edition.version, levels=shown)

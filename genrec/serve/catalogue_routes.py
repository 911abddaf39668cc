"""The routes that change the catalogue: items that come, go, or cannot be had; versions.

Owns how changes wait for each other, off the event loop. Knows no file and no code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query

from genrec.errors import DataError
from genrec.serve import logs
from genrec.serve.backend import QueueFullError
from genrec.serve.catalogue_schemas import (
    CatalogAddRequest,
    CatalogAvailabilityRequest,
    CatalogChange,
    CatalogEntry,
    CatalogRemoveRequest,
    CatalogRollbackRequest,
    CatalogState,
    CatalogVersion,
    CatalogVersions,
)
from genrec.serve.catalogue_store import CatalogueStore, Outcome
from genrec.serve.item_codes import NewItem
from genrec.serve.journal import StoreFullError
from genrec.serve.problems import MEDIA_TYPE, ProblemError
from genrec.serve.recommend_routes import PROBLEMS
from genrec.serve.service import Service

_MOST_WAITING = 16
_RETRY_SECONDS = 2.0
_FULL: dict[int | str, dict[str, Any]] = {
    507: {
        "description": "The catalogue's disk is full; nothing was changed.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


class Writer:
    """Makes changes one after the other, on a thread of its own."""

    def __init__(self, store: CatalogueStore) -> None:
        """Nothing waits yet."""
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="genrec-catalogue")
        self._n_waiting = 0

    async def change(self, make: Callable[[], Outcome]) -> CatalogChange:
        """What a change came to, once it is made; a client that leaves does not stop it.

        Raises:
            GenrecError: those of `make`.
            ProblemError: the disk is full.
            QueueFullError: too many changes wait.
        """
        if self._n_waiting >= _MOST_WAITING:
            raise QueueFullError(
                f"{self._n_waiting} changes of the catalogue wait; try again later, and send more "
                f"items in one change",
                _RETRY_SECONDS,
            )
        self._n_waiting += 1
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except StoreFullError as error:
            raise ProblemError(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from error
        finally:
            self._n_waiting -= 1
        return CatalogChange(
            request_id=logs.request_id.get(),
            version=done.version,
            items=done.n_items,
            results=[
                CatalogEntry(item_id=i, sid=s, status=status) for i, s, status in done.entries
            ],
            removed=list(done.removed),
            switched=done.n_switched,
        )

    def close(self) -> None:
        """Finish what is under way, and give the store's directory free."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._store.close()


def build_router(service: Service, store: CatalogueStore) -> APIRouter:
    """The routes that change a service's catalogue, and the end of its store with the server.

    Args:
        service: is given each new edition.
        store: holds the versions.
    """
    writer = Writer(store)
    store.follow(service.replace_edition)

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(writer.close)

    router = APIRouter(prefix="/v1/catalog", tags=["catalogue"], responses=PROBLEMS, lifespan=run)
    _add_readers(router, store)
    _add_writers(router, store, writer)
    return router


def _add_readers(router: APIRouter, store: CatalogueStore) -> None:
    @router.get("", summary="The catalogue's current version")
    async def read_catalog() -> CatalogState:
        """Which version is answered from, and how many items it has."""
        versions = store.list_versions()
        return CatalogState(
            version=versions[-1].version,
            items=versions[-1].items,
            unavailable=store.n_unavailable,
            oldest_version=versions[0].version,
            changed=versions[-1].time,
        )

    @router.get("/versions", summary="The versions that can be brought back")
    async def list_catalog_versions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> CatalogVersions:
        """The newest first."""
        newest = reversed(store.list_versions()[-limit:])
        return CatalogVersions(versions=[CatalogVersion(**asdict(info)) for info in newest])


def _add_writers(router: APIRouter, store: CatalogueStore, writer: Writer) -> None:
    @router.post("/items", summary="Add items, or describe them anew", responses=_FULL)
    async def add_catalog_items(body: CatalogAddRequest) -> CatalogChange:
        """All of them or none, as one new version, which is on disk when this answers.

        A new item gets codes from the frozen tokenizer; no item's codes ever change. The same
        request sent again changes nothing.
        """
        items = [NewItem(**item.model_dump()) for item in body.items]
        return await writer.change(lambda: store.add_items(items))

    @router.post("/items/remove", summary="Remove items", responses=_FULL)
    async def remove_catalog_items(body: CatalogRemoveRequest) -> CatalogChange:
        """All of them or none. Their codes stay reserved, and are theirs if they come back."""
        return await writer.change(lambda: store.remove_items(body.item_ids, body.unknown))

    @router.post("/availability", summary="Say which items can be had", responses=_FULL)
    async def set_catalog_availability(body: CatalogAvailabilityRequest) -> CatalogChange:
        """All of them or none. Items that cannot be had are never answered; histories hold any."""
        wanted = {item.item_id: item.available for item in body.items}
        if len(wanted) < len(body.items):
            raise DataError("items: an id comes twice; say once whether it can be had")
        return await writer.change(lambda: store.set_availability(wanted, body.unknown))

    @router.post("/rollback", summary="Bring an earlier version back", responses=_FULL)
    async def roll_back_catalog(body: CatalogRollbackRequest) -> CatalogChange:
        """What that version held becomes a new version; rolling back can be rolled back."""
        return await writer.change(lambda: store.roll_back(body.version))

"""The HTTP application: every route of the server behind one gate, and its OpenAPI description.

Owns which routers are included and what the description says of the whole. Knows no route's
working.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

import genrec
from genrec.serve import health_routes, recommend_routes, text_routes
from genrec.serve.limits import Gate
from genrec.serve.playground import routes as playground_routes
from genrec.serve.problems import add_handlers
from genrec.serve.service import Service

_SUMMARY = "Items that exist, recommended by a language model over semantic ids."


def build_app(service: Service, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application of a service.

    Args:
        service: what its routes share.
        routers: of parts that the caller has set up, such as the catalogue's.
    """
    app = FastAPI(
        title="genrec",
        summary=_SUMMARY,
        version=genrec.__version__,
        lifespan=_make_lifespan(service),
        generate_unique_id_function=_name_operation,
    )
    app.state.service = service
    app.include_router(health_routes.build_router(service))
    app.include_router(recommend_routes.build_router(service))
    app.include_router(text_routes.build_router(service))
    app.include_router(playground_routes.build_router(service))
    for router in routers:
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    _describe_security(app, service)
    return app


def _make_lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        start = asyncio.create_task(service.start())
        start.add_done_callback(service.note_start)
        if service.settings.wait_for_start:
            await asyncio.wait((start,))
        yield
        await service.stop()
        start.cancel()

    return run


def _name_operation(route: APIRoute) -> str:
    """The function's own name: stable, and what a typed client calls its method."""
    return route.name


def _describe_security(app: FastAPI, service: Service) -> None:
    """Say in the description that requests carry a key, where they must."""
    build = app.openapi

    def describe() -> dict[str, Any]:
        described = build()
        if service.settings.keys:
            schemes = described.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            described["security"] = [{"key": []}]
        return described

    app.openapi = describe  # type: ignore[method-assign]

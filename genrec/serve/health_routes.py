"""The routes that machines watch: alive, ready, metrics.

Owns what each says. Knows no recommendation.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from genrec.serve.schemas import Alive, ServerState
from genrec.serve.service import Service


def build_router(service: Service) -> APIRouter:
    """The routes that say how a service is."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Whether the process answers")
    async def check_health() -> Alive:
        """200 as long as the process runs, whatever the engine does; restart it if this fails."""
        return Alive()

    @router.get(
        "/readyz",
        summary="Whether requests are taken",
        responses={503: {"model": ServerState, "description": "Not now; `state` says why."}},
    )
    async def check_ready(response: Response) -> ServerState:
        """200 while requests are taken; 503 while starting, restarting, draining, or failed."""
        if service.state != "ready":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return ServerState(
            state=service.state,
            version=service.edition.version,
            items=service.edition.recommender.n_items,
            adapters=list(service.backend.adapters),
            domains=list(service.settings.domains),
        )

    @router.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def read_metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router

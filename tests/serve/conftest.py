"""A small real model behind the server's routes, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from genrec.recommender import Recommender
from genrec.serve.app import build_app
from genrec.serve.backend import Edition
from genrec.serve.metrics import ServeMetrics
from genrec.serve.service import Service
from genrec.serve.settings import ServeSettings
from genrec.serve.torch_backend import TorchBackend

MakeService = Callable[..., Service]


@pytest.fixture(scope="session")
def recommender(tiny_run: Path) -> Recommender:
    """A model that is too small to be good at anything: 60 items of three codes."""
    return Recommender.from_pretrained(tiny_run / "model", device="cpu")


@pytest.fixture(scope="session")
def make_service(recommender: Recommender) -> MakeService:
    """A function from settings, and a backend to use instead of torch, to a service."""

    def make(backend: Any = None, **settings: Any) -> Service:
        given, metrics = ServeSettings(**settings), ServeMetrics()
        edition = Edition(1, recommender)
        chosen = backend or TorchBackend(edition, given, metrics)
        return Service(edition, chosen, given, metrics=metrics)

    return make


@pytest.fixture(scope="module")
def service(make_service: MakeService) -> Service:
    """One service with the settings that nobody changed."""
    return make_service()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    """A client of `service`; an exception that no handler knows is raised in the test."""
    with TestClient(build_app(service)) as running:
        yield running

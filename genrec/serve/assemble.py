"""A server put together: model, engine, adapters, catalogue, routes.

Owns what is checked before a port is bound, and which part gets what. Knows no option's name and no
request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from genrec.decode.torch_engine import TorchEngine
from genrec.decode.writer import Writer
from genrec.errors import RecipeError, join_problems
from genrec.model_weights import find_switch, read_domains
from genrec.opening import ModelChoice, open_recommender
from genrec.recommender import Recommender
from genrec.serve import catalogue_routes
from genrec.serve.app import build_app
from genrec.serve.backend import Backend, Edition
from genrec.serve.catalogue_store import open_store
from genrec.serve.item_encoder import ItemEncoder, find_encoder
from genrec.serve.metrics import ServeMetrics
from genrec.serve.service import Service
from genrec.serve.settings import ServeSettings
from genrec.serve.torch_backend import TorchBackend
from genrec.serve.vllm_model import build_vllm_backend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a server is made of.

    Attributes:
        choice: the model.
        adapters: directories by name.
        store: the directory of the catalogue's versions; None serves the model's own items.
        tokenizer: the frozen tokenizer, which gives new items and texts their codes; None takes the
            one that the model names, where it is still there.
        engine_args: for engine vllm, vLLM's own arguments.
    """

    choice: ModelChoice
    adapters: Mapping[str, Path] = field(default_factory=dict)
    store: Path | None = None
    tokenizer: Path | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)


def assemble_server(parts: Parts, settings: ServeSettings) -> tuple[Service, FastAPI]:
    """A service and its application, with everything loaded that can be wrong.

    Args:
        parts: what it is made of.
        settings: how it behaves.

    Raises:
        GenrecError: a model that cannot be used, an adapter of another model, a domain without its
            adapter, a catalogue that is not this model's.
    """
    settings = replace(settings, domains=_find_domains(parts, settings))
    metrics = ServeMetrics()
    backend: Backend | None = None
    if parts.choice.engine == "vllm":
        recommender, backend = build_vllm_backend(
            parts.choice, settings, metrics, parts.adapters, parts.engine_args
        )
    else:
        recommender = open_recommender(parts.choice, parts.adapters)
    if isinstance(recommender.engine, TorchEngine):  # before any edition shares its weights
        recommender.engine.keep_prefixes(settings.prefix_cache_bytes)
    own = Edition(1, recommender)
    if parts.store is None:
        backend = backend or _build_backend(own, settings, metrics)
        encoder = _find_encoder(parts, recommender)
        service = Service(own, backend, settings, metrics=metrics, encoder=encoder)
        return service, build_app(service)
    store = open_store(parts.store, recommender, parts.tokenizer, model=parts.choice.model)
    backend = backend or _build_backend(store.edition, settings, metrics)
    service = Service(store.edition, backend, settings, metrics=metrics, encoder=store)
    return service, build_app(service, [catalogue_routes.build_router(service, store)])


def _build_backend(
    edition: Edition, settings: ServeSettings, metrics: ServeMetrics
) -> TorchBackend:
    recommender = edition.recommender
    engine: Any = recommender.engine
    switch = find_switch(engine)
    writer = Writer(
        engine.model,
        recommender.tokenizer,
        recommender.chat,
        use_adapter=switch.use if switch else None,
    )
    return TorchBackend(edition, settings, metrics, switch, writer)


def _find_domains(parts: Parts, settings: ServeSettings) -> dict[str, str]:
    """The adapter of each domain: those that adapters were tuned for, and what settings say.

    Raises:
        RecipeError: a domain whose adapter there is not, or that two were tuned for.
    """
    tuned = read_domains(parts.adapters)
    domains = {domain: names[0] for domain, names in tuned.items()} | dict(settings.domains)
    problems = [
        f"domain {domain!r} is to be answered by adapter {name!r}, which is not served; pass "
        f"--adapter {name}=PATH"
        for domain, name in domains.items()
        if name not in parts.adapters
    ]
    problems += [
        f"adapters {', '.join(map(repr, names))} were all tuned for domain {domain!r}; say which "
        f"answers: --domain {domain}={names[0]}"
        for domain, names in tuned.items()
        if len(names) > 1 and domain not in settings.domains
    ]
    if problems:
        raise RecipeError(join_problems("domains", problems))
    return domains


def _find_encoder(parts: Parts, recommender: Recommender) -> ItemEncoder | None:
    """What gives texts of histories their codes; without a named tokenizer, only if it works.

    Raises:
        GenrecError: a tokenizer that was named and is not the model's.
    """
    sizes = getattr(recommender.engine, "codebook_sizes", None)
    if sizes is None:
        return None
    catalogue = recommender.catalogue
    sids = dict(zip(catalogue.item_ids, catalogue.sids, strict=True))
    model, loss = parts.choice.model, "histories can hold no texts"
    return find_encoder(parts.tokenizer, model, sids, sizes, loss=loss)[0]

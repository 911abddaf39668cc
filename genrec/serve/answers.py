"""One recommendation from request to answer: limits, prompt, search, check, words.

Owns the order of these stages, what each took, and the check that no answer leaves that is not an
item. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import count_legal, narrow_filters
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trace import SearchTrace
from genrec.errors import CapacityError, DataError, ModelError, join_problems
from genrec.prompts.explain import ExplainPrompt
from genrec.serve import logs
from genrec.serve.backend import DeadlineError, Edition, RankJob
from genrec.serve.explain import explain, find_prompt
from genrec.serve.schemas import (
    ItemEntry,
    RecommendAnswer,
    RecommendedItem,
    RecommendRequest,
    TextEntry,
)
from genrec.serve.service import Encoded, Entry, Service, check_known
from genrec.serve.settings import ServeSettings
from genrec.types import Filters, IndexArray, RankedItems


@dataclass(slots=True)
class StageClock:
    """How long each stage of one request took."""

    service: Service
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def mark(self, stage: str) -> None:
        """End a stage now; the next one begins."""
        now = time.monotonic()
        self.add(stage, now - self.last)
        self.last = now

    def add(self, stage: str, seconds: float) -> None:
        """Count a stage whose time is known."""
        self.seconds[stage] = seconds
        self.service.metrics.observe_stage(stage, seconds)


async def answer_request(
    service: Service, request: RecommendRequest, deadline: float | None = None
) -> RecommendAnswer:
    """The answer to one request, on the edition that is current when it begins.

    Args:
        service: the server.
        request: what is wanted.
        deadline: `time.monotonic()` by which; None gives it the time that settings and request say.

    Raises:
        GenrecError: DataError, CapacityError and RecipeError where the request is at fault, those
            of `Backend.rank`, and ModelError for an answer that is no item.
    """
    deadline = deadline or service.find_deadline(request.timeout_seconds)
    clock = StageClock(service)
    service.backend.check_room(deadline)
    job, encoded = await prepare_job(service, request, deadline)
    edition, wanted, adapter = job.edition, job.filter, job.adapter
    clock.mark("encode")
    explaining = find_prompt(edition) if request.explain else None
    ranked = await _rank(job, service, clock)
    items, scores = ranked.item_index[0], ranked.scores[0]
    check_answer(service, edition, items, wanted)
    answers = [
        _describe(edition, int(item), rank, float(score))
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
    ]
    if explaining is not None:
        reasons = await explain(service, edition, encoded, items.tolist(), adapter, deadline)
        for answer, reason in zip(answers, reasons, strict=True):
            answer.reason = reason or None
        clock.mark("explain")
    return RecommendAnswer(
        request_id=logs.request_id.get(),
        version=edition.version,
        items=answers,
        reason_source=_name_source(explaining),
        certified=bool(ranked.certified[0]),
        bound=_find_bound(ranked),
        evaluations=0 if ranked.evaluations is None else int(ranked.evaluations[0]),
        timings_ms={stage: round(1000 * spent, 3) for stage, spent in clock.seconds.items()},
    )


async def trace_request(service: Service, request: RecommendRequest) -> tuple[Edition, SearchTrace]:
    """The search behind a request's answer, and the edition that was searched.

    Raises:
        GenrecError: as for `answer_request`.
        DataError: nothing may be answered, or the engine does not search a tree of codes here.
    """
    job, _ = await prepare_job(service, request, service.find_deadline(request.timeout_seconds))
    if not isinstance(job.edition.recommender.engine, TorchEngine):
        raise DataError(
            f"engine {service.backend.name!r} does not show how it searches; serve a model of "
            f"semantic IDs with --engine torch for that"
        )
    if job.k == 0:
        raise DataError("no item may be answered under these filters, so there is no search")
    trace = SearchTrace()
    await service.backend.rank(replace(job, trace=trace))
    return job.edition, trace


async def prepare_job(
    service: Service, request: RecommendRequest, deadline: float
) -> tuple[RankJob, Encoded]:
    """What the engine is to do for a request, and its history as the model reads it.

    Raises:
        GenrecError: DataError, CapacityError and RecipeError where the request is at fault, and
            DeadlineError.
    """
    check_limits(request, service.settings)
    edition = service.edition
    history = [_read_entry(entry) for entry in request.history]
    adapter = service.find_adapter(request.adapter, request.domain)
    async with _until(deadline):
        encoded = await service.encode(edition, history, request.user_id, request.unknown)
        wanted = await service.run_apart(build_filter, edition, request, encoded)
    job = RankJob(
        edition=edition,
        prompt=encoded.prompt,
        k=min(request.k, count_legal([wanted], edition.recommender.n_items)[0]),
        search=_read_search(request),
        filter=wanted,
        adapter=adapter,
        user_vector=encoded.user_vector,
        deadline=deadline,
    )
    return job, encoded


def check_limits(request: RecommendRequest, settings: ServeSettings) -> None:
    """Refuse a request that asks for more than this server gives.

    Raises:
        CapacityError: it lists all that is too much.
    """
    entries = [_read_entry(entry) for entry in request.history]
    longest = max(len(entry.text or "") for entry in entries)
    filters = request.filters
    sizes = {
        "history": (len(entries), settings.max_history, "send the latest items"),
        "text": (longest, settings.max_text_chars, "shorten it"),
        "k": (request.k, settings.max_k, "ask for fewer"),
        "width": (request.width or 0, settings.max_width, "search with fewer beams"),
        "filters.allow": (len(filters.allow or ()), settings.max_filter_ids, "use a category"),
        "filters.deny": (len(filters.deny), settings.max_filter_ids, "use a category"),
        "max_evaluations": (
            request.max_evaluations if request.exact else 0,
            settings.max_evaluations,
            "lower it",
        ),
    }
    problems = [
        f"{name}: {size:,} is more than this server's {most:,}; {way_out}"
        for name, (size, most, way_out) in sizes.items()
        if size > most
    ]
    if request.width is not None and request.width < request.k:
        problems.append(f"width: {request.width} beams cannot give k={request.k}; leave it out")
    if request.exact and request.groups > 1:
        problems.append("exact: a list of diverse groups has no exact answer; leave one out")
    if problems:
        raise CapacityError(join_problems("the request", problems))


def build_filter(edition: Edition, request: RecommendRequest, encoded: Encoded) -> ItemFilter:
    """What a request may be answered with.

    Raises:
        UnknownItemError: an id outside the catalogue.
        DataError: a category that no item has.
        CapacityError: more answers than the catalogue has items.
    """
    catalogue = edition.recommender.catalogue
    if request.k > catalogue.n_items:
        raise CapacityError(
            f"k={request.k} answers were asked for, and the catalogue has {catalogue.n_items:,} "
            f"items; ask for fewer"
        )
    wanted = request.filters
    check_known(edition, [*(wanted.allow or ()), *wanted.deny])
    filters = Filters(wanted.allow, wanted.deny, wanted.categories)
    seen = np.array(encoded.rows if wanted.exclude_seen else (), dtype=np.int64)
    found = catalogue.build_filters(filters, [np.unique(seen)], available=edition.available)
    # Of a catalogue of titles, items without one are no answers.
    answerable = getattr(edition.recommender.engine, "answerable", None)
    return found[0] if answerable is None else narrow_filters(found, answerable)[0]


def check_answer(service: Service, edition: Edition, items: IndexArray, wanted: ItemFilter) -> None:
    """Refuse to send answers that are no items, or that the request excluded; counts them.

    The search cannot give such; this looks at what it gave.

    Raises:
        ModelError: there are some.
    """
    n_items = edition.recommender.n_items
    inside = items[(items >= 0) & (items < n_items)]
    n_wrong = len(items) - len(np.unique(inside)) + int(np.isin(inside, wanted.excluded).sum())
    if wanted.allowed is not None:
        n_wrong += int((~wanted.allowed[inside]).sum())
    if wanted.only is not None:
        n_wrong += int((~np.isin(inside, wanted.only)).sum())
    if n_wrong:
        service.metrics.invalid.inc(n_wrong)
        raise ModelError(
            f"the engine gave {n_wrong} answers that are no items of version {edition.version}, or "
            f"were excluded; this is a fault of genrec's: please report it"
        )
    service.metrics.answers.inc(len(items))


async def _rank(job: RankJob, service: Service, clock: StageClock) -> RankedItems:
    """The answers to a job; none where nothing may be answered."""
    if job.k == 0:
        nothing = np.empty((1, 0), dtype=np.int64)
        return RankedItems(nothing, nothing.astype(np.float32), np.ones(1, dtype=np.bool_))
    ranked = await service.backend.rank(job)
    took = time.monotonic() - clock.last
    clock.last += took
    for stage, seconds in (job.seconds or {"search": took}).items():
        clock.add(stage, seconds)
    if ranked.evaluations is not None:
        service.metrics.beams.inc(int(ranked.evaluations[0]))
    service.metrics.uncertified.inc(0 if ranked.certified[0] else 1)
    return ranked


def _name_source(prompt: ExplainPrompt | None) -> Literal["trained", "untrained"] | None:
    if prompt is None:
        return None
    return "trained" if prompt.is_trained else "untrained"


def _read_entry(entry: str | ItemEntry | TextEntry) -> Entry:
    if isinstance(entry, TextEntry):
        return Entry(text=entry.text)
    return Entry(item_id=entry if isinstance(entry, str) else entry.item_id)


def _read_search(request: RecommendRequest) -> Search:
    return Search(
        width=request.width,
        normalize=request.normalize,
        exact=request.exact,
        max_evaluations=request.max_evaluations,
        groups=request.groups,
        diversity=request.diversity,
        length_penalty=request.length_penalty,
    )


def _describe(edition: Edition, item: int, rank: int, score: float) -> RecommendedItem:
    found = edition.recommender.catalogue.describe(item, rank, score)
    return RecommendedItem(
        item_id=found.item_id, title=found.title, score=score, rank=rank, sid=found.sid
    )


def _find_bound(ranked: RankedItems) -> float | None:
    """The certificate's bound; JSON has no word for "nothing is left unexplored"."""
    bound = -np.inf if ranked.bound is None else float(ranked.bound[0])
    return bound if np.isfinite(bound) else None


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlineError("the request was not answered in time; ask again later") from None

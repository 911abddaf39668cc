"""What the routes of one server share: the current catalogue, the engine, the limits, the counters.

Owns which edition is current and the way from a history to a prompt. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from genrec.errors import DataError, GenrecError, ModelError, RecipeError, UnknownItemError
from genrec.recipe import suggest_name
from genrec.serve.backend import Backend, Edition, QueueFullError, State
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.types import FloatArray, Unknown

_log = logging.getLogger(__name__)
_MOST_NAMED = 5
_STREAM_RETRY_SECONDS = 5.0
_SHOWN_CHARS = 60
_P = ParamSpec("_P")
_T = TypeVar("_T")


class TextEncoder(Protocol):
    """Gives texts the semantic ids that a new item with that text would be near."""

    def encode_texts(self, texts: Sequence[str]) -> list[str]:
        """The semantic id of each text, from the frozen tokenizer."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a history: an item by its id, or something outside the catalogue by its text."""

    item_id: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A history as the model reads it.

    Attributes:
        prompt: token ids.
        rows: the item_index of its known items, oldest first.
        sids: the semantic id of every entry, and
        titles: its title.
        user_vector: for a model with soft user tokens.
    """

    prompt: tuple[int, ...]
    rows: tuple[int, ...]
    sids: tuple[str, ...]
    titles: tuple[str, ...]
    user_vector: FloatArray | None = None


class Service:
    """The current edition, and what answers requests about it."""

    def __init__(
        self,
        edition: Edition,
        backend: Backend,
        settings: ServeSettings,
        *,
        metrics: ServeMetrics | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Join what a server is made of.

        Args:
            edition: the catalogue to begin with.
            backend: runs the model.
            settings: limits and times.
            metrics: shared with the backend; made anew when unset.
            encoder: gives texts of a history their codes; without one, histories hold items only.
        """
        self.backend = backend
        self.settings = settings
        self.metrics = metrics or ServeMetrics()
        self.encoder = encoder
        self.failure: GenrecError | None = None
        self.is_draining = False
        self.running = 0  # requests being worked on
        self._n_streams = 0
        self._edition = edition
        # One thread: a fast tokenizer is not made for several, and the event loop must not wait.
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="genrec-encode")
        self._show_edition()
        self.metrics.watch(self.metrics.running, lambda: float(self.running))
        self.metrics.watch(self.metrics.ready, lambda: float(self.state == "ready"))

    @property
    def edition(self) -> Edition:
        """The current edition; a request takes it once and stays with it."""
        return self._edition

    @property
    def state(self) -> State:
        """Whether requests are taken, and if not, why."""
        if self.is_draining:
            return "draining"
        return "failed" if self.failure else self.backend.state

    def replace_edition(self, edition: Edition) -> None:
        """Answer from now on with another edition; running requests finish on theirs."""
        self._edition = edition
        self._show_edition()

    async def start(self) -> None:
        """Bring the backend up."""
        # The first filter by category would otherwise hold up its request on a large catalogue.
        await self.run_apart(lambda: self._edition.recommender.catalogue.category_masks)
        await self.backend.start()

    def note_start(self, start: asyncio.Task[None]) -> None:
        """Keep what a start that is over ended with in `failure`, and say it in the log."""
        error = None if start.cancelled() else start.exception()
        if isinstance(error, GenrecError):
            self.failure = error
            _log.error("the engine did not start: %s", error)
        elif error is not None:
            self.failure = ModelError(f"the engine did not start: {error!r}")
            _log.error("the engine did not start", exc_info=error)

    async def stop(self) -> None:
        """Take no more requests, and end the backend once it has finished its jobs."""
        self.is_draining = True
        await self.backend.stop(self.settings.drain_seconds)
        self._apart.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def hold_stream(self) -> Iterator[None]:
        """A block in which one of the places for streams is taken.

        Raises:
            QueueFullError: none is free.
        """
        if self._n_streams >= self.settings.max_streams:
            raise QueueFullError(
                f"{self._n_streams} streams are open, which is all that this server has at once; "
                f"try again when one has ended",
                _STREAM_RETRY_SECONDS,
            )
        self._n_streams += 1
        try:
            yield
        finally:
            self._n_streams -= 1

    async def run_apart(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """The result of work that would hold up the event loop, run on the encoder's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._apart, lambda: function(*args, **kwargs))

    async def encode(
        self,
        edition: Edition,
        history: Sequence[Entry],
        user_id: str | None = None,
        unknown: Unknown = "error",
    ) -> Encoded:
        """The prompt of a history.

        Args:
            edition: whose items it names.
            history: oldest first.
            user_id: whose it is, for models that are told.
            unknown: what to do with ids outside the catalogue: `error`, or `skip` them.

        Raises:
            UnknownItemError: an id outside the catalogue, and `unknown` is `error`.
            DataError: nothing is left of the history, a text and no encoder, or no user for a model
                that needs one.
        """
        return await self.run_apart(self._encode, edition, history, user_id, unknown)

    def find_adapter(self, adapter: str | None, domain: str | None) -> str | None:
        """The adapter that a request means by name or by domain; None is the model as trained.

        Raises:
            RecipeError: there is none of that name, or both were given.
        """
        if adapter is not None and domain is not None:
            raise RecipeError(
                f"adapter={adapter!r} and domain={domain!r} were both given; give one of them"
            )
        domains, adapters = self.settings.domains, self.backend.adapters
        if domain is not None:
            if domain not in domains:
                raise RecipeError(_explain_missing("domain", domain, tuple(domains)))
            adapter = domains[domain]
        if adapter is not None and adapter not in adapters:
            raise RecipeError(_explain_missing("adapter", adapter, adapters))
        return adapter

    def find_deadline(self, timeout_seconds: float | None = None) -> float:
        """The `time.monotonic()` by which a request that begins now must be answered."""
        longest = self.settings.deadline_seconds
        return time.monotonic() + min(timeout_seconds or longest, longest)

    def _show_edition(self) -> None:
        self.metrics.version.set(self._edition.version)
        self.metrics.items.set(self._edition.recommender.n_items)

    def _encode(
        self, edition: Edition, history: Sequence[Entry], user_id: str | None, unknown: Unknown
    ) -> Encoded:
        recommender = edition.recommender
        catalogue = recommender.catalogue
        check_known(edition, [e.item_id for e in history if e.item_id is not None], unknown)
        texts = [entry.text for entry in history if entry.text is not None]
        sid_of_text = iter(self._encode_texts(texts))
        rows, sids, titles = [], [], []
        for entry in history:
            if entry.text is not None:
                titles.append(entry.text)
                sids.append(next(sid_of_text))
            elif entry.item_id in catalogue.rows:
                row = catalogue.rows[entry.item_id]
                rows.append(row)
                titles.append(catalogue.titles[row])
                sids.append(catalogue.sids[row])
        if not sids:
            raise DataError(
                f"a history needs at least one known item, and none of its {len(history)} entries "
                f"is one; for users without history use a popularity list"
            )
        users = recommender.check_users(None if user_id is None else [user_id], 1)
        vectors = recommender.find_vectors(users)
        try:
            prompt = recommender.encode_entries(sids, titles, users[0])
        except DataError as error:
            if not texts or self.encoder is not None:
                raise
            raise DataError(
                f"the history holds a text ({texts[0][:_SHOWN_CHARS]!r}), this model's prompts "
                f"show codes, and this server can give none to texts: start it with --tokenizer "
                f"DIR (the output of `genrec tokenize`), or send item ids only"
            ) from error
        return Encoded(
            prompt=tuple(prompt),
            rows=tuple(rows),
            sids=tuple(sids),
            titles=tuple(titles),
            user_vector=None if vectors is None else vectors[0],
        )

    def _encode_texts(self, texts: Sequence[str]) -> list[str]:
        if self.encoder is None or not texts:
            return [""] * len(texts)  # enough for a prompt that shows titles
        return self.encoder.encode_texts(texts)


def check_known(edition: Edition, item_ids: Sequence[str], unknown: Unknown = "error") -> None:
    """Refuse ids outside the catalogue.

    Unlike `Catalogue` it suggests nothing: likeness to thousands of ids takes long enough for wrong
    requests to hold up right ones.

    Raises:
        UnknownItemError: there are such, and `unknown` is `error`.
    """
    rows = edition.recommender.catalogue.rows
    missing = [item_id for item_id in item_ids if item_id not in rows]
    if missing and unknown == "error":
        named = ", ".join(repr(item_id) for item_id in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise UnknownItemError(
            f"the catalogue (version {edition.version}) has no item {named}{more}; correct the id, "
            f'leave it out, or pass "unknown": "skip" to have unknown ids of a history left out'
        )


def _explain_missing(kind: str, name: str, known: Sequence[str]) -> str:
    if not known:
        return f"{kind}={name!r}: this server has no {kind}s; leave {kind!r} out"
    return f"{kind}={name!r} is unknown; {suggest_name(name, known)}"

"""The asynchronous vLLM engine: many searches at once in one running `vllm.AsyncLLM`.

Owns how requests for one token each, and texts, reach a vLLM that runs in processes of its own, and
what comes back; a search that is given up takes its requests out of the engine. The search itself
is the one that every engine drives. Knows no queue, no deadline and no restart.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrec.decode.engine import PLAIN, ItemFilter, Search
from genrec.decode.kind_gate import KindGate
from genrec.decode.request import check_request
from genrec.decode.search import search_items
from genrec.decode.tasks import run_all
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_open import bind_threads, list_engine_args, runs_on_cpu
from genrec.decode.vllm_probe import check_probe, write_probe
from genrec.decode.vllm_steps import (
    Answer,
    StepRequest,
    StepWriter,
    join_answers,
    list_params,
    list_probe_params,
    list_whole_params,
)
from genrec.decode.writer import TextPart, TextRequest
from genrec.errors import (
    CapacityError,
    DataError,
    GenrecError,
    ModelError,
    RecipeError,
    join_problems,
)
from genrec.recipe import suggest_name
from genrec.types import RankedItems

_EVERYTHING = ItemFilter()
_FINISHED: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
_log = logging.getLogger(__name__)


class EngineGoneError(GenrecError):
    """The engine's process has ended, or answers no more; start another one."""


@dataclass(frozen=True, slots=True)
class LoraShelf:
    """The adapters of one engine.

    Attributes:
        folders: LoRA directories by the names that requests say.
        own: the adapter that makes the engine's weights the model as trained, for requests that
            name none; None where the weights are that.
    """

    folders: Mapping[str, Path] = field(default_factory=dict)
    own: Path | None = None

    def list_all(self) -> dict[str, Path]:
        """All LoRA directories, by the names that vLLM knows them by."""
        named = {f"adapter:{name}": Path(path) for name, path in self.folders.items()}
        return named if self.own is None else {"own": Path(self.own), **named}

    def find(self, name: str | None) -> str | None:
        """By what name vLLM knows the adapter of a request; None is no adapter.

        Raises:
            ModelError: there is none of that name.
        """
        if name is None:
            return None if self.own is None else "own"
        if name not in self.folders:
            raise ModelError(f"unknown adapter {name!r}; {suggest_name(name, self.folders)}")
        return f"adapter:{name}"


NO_ADAPTERS = LoraShelf()


class AsyncVllmEngine:
    """Ranks items and writes texts in one vLLM, from as many tasks as there are.

    On the same weights in float32 it gives the items and the order of `TorchEngine`.
    """

    def __init__(
        self,
        llm: Any,
        items: VllmItems,
        shelf: LoraShelf = NO_ADAPTERS,
        *,
        keeps_apart: bool = True,
    ) -> None:
        """Take a running engine; `check` looks whether it can be trusted.

        Args:
            llm: a `vllm.AsyncLLM`, best from `open_async_vllm`.
            items: what is searched for, unless a call says otherwise.
            shelf: its adapters.
            keeps_apart: whether requests with and without an adapter must not meet, as on CPU.
        """
        self.items = items
        self._llm = llm
        self._shelf = shelf
        self._max_tokens = int(llm.model_config.max_model_len)
        self._has_plugin = llm.model_config.logprobs_mode == "processed_logits"
        self._folders = shelf.list_all()
        self._numbers = {name: n for n, name in enumerate(self._folders, start=1)}
        self._gate = KindGate() if keeps_apart and self._folders else None
        self._ids = itertools.count()

    @property
    def is_gone(self) -> bool:
        """Whether the engine's process has ended."""
        return bool(self._llm.errored)

    async def rank(
        self,
        prompt: Sequence[int],
        k: int,
        search: Search = PLAIN,
        filter: ItemFilter = _EVERYTHING,
        adapter: str | None = None,
        *,
        items: VllmItems | None = None,
    ) -> RankedItems:
        """The (1, k) best items after a prompt; cancelled, it leaves nothing in the engine.

        Args:
            prompt: token ids.
            k: answers.
            search: as for `Engine.rank_prompts`.
            filter: what may be answered.
            adapter: by name; None is the model as trained.
            items: another version of the catalogue than the engine was opened with.

        Raises:
            GenrecError: those of `Engine.rank_prompts`.
            EngineGoneError: the engine's process ended.
        """
        items = items or self.items
        request = check_request(items.limit(self._max_tokens), [prompt], k, search, [filter])
        known = self._shelf.find(adapter)
        writer = StepWriter(request.prompts, items.token_ids, request.search.normalize, [known])
        dialogue = search_items(items.trie, request)
        question = next(dialogue)
        while True:
            async with self._enter(known):
                scores = await self._score(writer.write_requests(question))
            try:
                question = dialogue.send(writer.read_gains(question, scores))
            except StopIteration as end:
                ranked: RankedItems = end.value
                return ranked

    async def write(
        self, request: TextRequest, ends: Iterable[int] = ()
    ) -> AsyncGenerator[TextPart]:
        """A text, piece by piece; closing the generator takes it out of the engine.

        Args:
            request: what to write after, and how.
            ends: tokens that end a text besides the tokenizer's own.

        Raises:
            CapacityError: the prompt leaves no room in what the model reads.
            DataError: no prompt, tokens that the model has not, or values that mean nothing.
            EngineGoneError: the engine's process ended.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        most = min(request.max_tokens, self._check_text(request))
        try:
            params = SamplingParams(
                max_tokens=most,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop=list(request.stop),
                stop_token_ids=list(ends),
                output_kind=RequestOutputKind.DELTA,
            )
        except ValueError as error:
            raise DataError(f"a text cannot be written so: {error}") from error
        known = self._shelf.find(request.adapter)
        async with (
            self._enter(known),
            aclosing(self._generate(list(request.prompt), params, known)) as outputs,
        ):
            async for output in outputs:
                (said,) = output.outputs
                yield TextPart(said.text, len(said.token_ids), _FINISHED.get(said.finish_reason))

    async def check(self) -> None:
        """Load every adapter, and ask for what the trie forbids, before the engine goes live.

        Raises:
            ModelError: an adapter that vLLM refuses, an illegal token, or scores that are not the
                model's own.
        """
        problems = []
        for name in self._numbers:
            loading = asyncio.ensure_future(self._llm.add_lora(self._find_lora(name)))
            await asyncio.wait((loading,))
            fault = loading.exception()  # vLLM's is a bare Exception
            if fault is not None:
                problems.append(f"{name} ({self._folders[name]}): {fault}")
        if problems:
            raise ModelError(join_problems("adapters that vLLM refuses", problems))
        requests = write_probe(self.items.trie, self.items.token_ids)
        async with self._enter(None):
            whole = await run_all([self._ask(r, list_whole_params()) for r in requests])
            if self._has_plugin:
                found = await run_all([self._ask(r, list_probe_params(r)) for r in requests])
            else:
                scores = await self._score(requests)
                found = [
                    Answer(r.wanted.tolist(), s.tolist())
                    for r, s in zip(requests, scores, strict=True)
                ]
        is_exact = str(self._llm.model_config.dtype).endswith("float32")
        check_probe(requests, found, whole, is_exact=is_exact)

    async def close(self) -> None:
        """End the engine's processes."""
        await asyncio.to_thread(self._llm.shutdown)

    def _enter(self, known: str | None) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._gate is None else self._gate.enter(known is not None)

    async def _score(self, requests: Sequence[StepRequest]) -> list[NDArray[np.float64]]:
        """For each request the log-probabilities of its wanted tokens."""
        asked = [list_params(request, self._has_plugin) for request in requests]
        answers = iter(
            await run_all(
                [
                    self._ask(request, params)
                    for request, own in zip(requests, asked, strict=True)
                    for params in own
                ]
            )
        )
        return [
            join_answers(request, list(itertools.islice(answers, len(own))), self._has_plugin)
            for request, own in zip(requests, asked, strict=True)
        ]

    async def _ask(self, request: StepRequest, params: Mapping[str, Any]) -> Answer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        wanted = SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)
        outputs = self._generate(request.prompt_token_ids, wanted, request.adapter)
        async with aclosing(outputs):
            async for output in outputs:
                said = output.outputs[0].logprobs
        return Answer(said.token_ids, said.logprobs)

    async def _generate(
        self, prompt: list[int], params: Any, known: str | None
    ) -> AsyncGenerator[Any]:
        """What vLLM says to one request; ends at once where the engine does."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        # As vLLM's own renderer gives it; other forms take a detour through a thread.
        shown = {"type": "token", "prompt_token_ids": prompt}
        number = f"genrec-{os.getpid()}-{next(self._ids)}"
        lora = None if known is None else self._find_lora(known)
        try:
            async with aclosing(
                self._llm.generate(shown, params, number, lora_request=lora)
            ) as outputs:
                async for output in outputs:
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineGoneError(
                f"the vLLM engine has stopped ({error.__cause__ or error}); start it again"
            ) from error

    def _find_lora(self, known: str) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(known, self._numbers[known], str(self._folders[known]))

    def _check_text(self, request: TextRequest) -> int:
        """How many tokens can be written after a request's prompt."""
        prompt, size = request.prompt, self.items.vocabulary_size
        if not prompt or not 0 <= min(prompt) <= max(prompt) < size:
            raise DataError(
                f"a text's prompt must be token ids from 0 to {size - 1}, at least one; encode it "
                f"with the model's own tokenizer"
            )
        room = self._max_tokens - len(prompt)
        if room < 1:
            raise CapacityError(
                f"the prompt has {len(prompt)} tokens, and the model reads {self._max_tokens} "
                f"together with its answer; shorten the prompt"
            )
        return room


async def open_async_vllm(
    model_dir: str | Path,
    items: VllmItems,
    shelf: LoraShelf = NO_ADAPTERS,
    *,
    plugin: bool = True,
    **engine_args: Any,
) -> AsyncVllmEngine:
    """A running, checked engine; it takes seconds to minutes and does not hold up the loop.

    Args:
        model_dir: a checkpoint directory.
        items: what is searched for.
        shelf: adapters over the checkpoint.
        plugin: as for `vllm_open.list_engine_args`.
        engine_args: as for `vllm_open.list_engine_args`.

    Raises:
        MissingExtraError: vLLM is not installed.
        RecipeError: arguments that vLLM does not have.
        ModelError: vLLM does not start, or its answers cannot be trusted.
    """
    is_cpu = await asyncio.to_thread(runs_on_cpu)
    args = list_engine_args(
        model_dir, is_cpu=is_cpu, plugin=plugin, adapters=shelf.list_all(), **engine_args
    )
    if is_cpu:
        bind_threads(int(args.get("tensor_parallel_size", 1)))
    llm = await asyncio.to_thread(_start, args)
    engine = AsyncVllmEngine(llm, items, shelf, keeps_apart=is_cpu)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(engine.close)
        await engine.check()
        undo.pop_all()
    return engine


def _start(args: Mapping[str, Any]) -> Any:
    # A forked child would share what this process's threads hold, locks among it.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    known = [one.name for one in fields(AsyncEngineArgs)]
    unknown = [f"{name}: {suggest_name(name, known)}" for name in args if name not in known]
    if unknown:
        raise RecipeError(join_problems("arguments that vLLM does not have", unknown))
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"vLLM does not start ({type(error).__name__}: {error}); its own log, on standard "
            f"error, says more: set VLLM_LOGGING_LEVEL=INFO"
        ) from error

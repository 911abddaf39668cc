"""Texts written by a language model in memory, many at once and one step at a time.

Owns the jobs that are being written: those that came together run as one batch, every step adds a
token to each text of one batch, and between steps the caller may use the model for something else.
Knows no HTTP, no item and no prompt's wording.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from genrec.decode.probe import max_positions
from genrec.decode.prompt_cache import pad_left
from genrec.decode.written_text import WrittenText
from genrec.errors import CapacityError, DataError, ModelError, join_problems
from genrec.prompts.chat import ChatFrame

_BATCH_TOKENS = 8192
"""As for ranking: this many cached tokens take 1.9 GB at Qwen3-0.6B's shape in float32."""

UseAdapter = Callable[[str | None], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a text, as it is written; `finish` is set on the last one only.

    Attributes:
        text: whole characters; may be empty.
        n_tokens: how many tokens were written for it, the end token included.
        finish: `stop` at the model's own end or a stop text, `length` at the limit.
    """

    text: str
    n_tokens: int
    finish: Literal["stop", "length"] | None = None


class TextRequest(Protocol):
    """What a text is written after, and how; `serve.backend.TextJob` is one."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def max_tokens(self) -> int:
        """At most so many are written; fewer where the model reads no more."""
        ...

    @property
    def temperature(self) -> float:
        """0 takes the likeliest token each time."""
        ...

    @property
    def top_p(self) -> float:
        """The smallest set of tokens with this much probability is drawn from."""
        ...

    @property
    def seed(self) -> int | None:
        """Of the draw; None draws anew each time."""
        ...

    @property
    def stop(self) -> Sequence[str]:
        """Texts before which writing ends."""
        ...

    @property
    def adapter(self) -> str | None:
        """By name; None is the model as trained."""
        ...


@dataclass(slots=True, eq=False)
class _Text:
    """One text that is being written: `most` tokens, unless it ends before."""

    number: int
    request: TextRequest
    most: int
    written: WrittenText
    warpers: LogitsProcessorList
    generator: torch.Generator | None
    n_tokens: int = 0
    is_cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    """Texts that came together: a row each of one cache.

    Shapes:
        tokens: (R, n) what the next pass reads: the prompts at first, then one token a row.
        visible: (R, columns so far) bool, False where padded.
        positions: (R, n).
    """

    texts: list[_Text]
    tokens: Tensor
    visible: Tensor
    positions: Tensor
    cache: DynamicCache
    adapter: str | None = field(default=None)


class Writer:
    """Writes texts with one model; all calls come from one thread, which alone uses the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        chat: ChatFrame | None = None,
        *,
        use_adapter: UseAdapter | None = None,
        batch_tokens: int = _BATCH_TOKENS,
    ) -> None:
        """Take a model; nothing runs before `step`.

        Args:
            model: decoder-only, with its head.
            tokenizer: its fast tokenizer.
            chat: the frame that prompts stand in; its end token ends a text too.
            use_adapter: a block in which the model runs with an adapter, where there are adapters.
            batch_tokens: how many tokens, prompts and answers, may be in one batch's cache.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._use_adapter = use_adapter
        self._batch_tokens = batch_tokens
        self._ends = find_ends(model, tokenizer, chat)
        self._max_positions = max_positions(model)
        embeddings: Any = model.get_input_embeddings()
        self._vocabulary_size = int(embeddings.weight.shape[0])
        self._takes = set(inspect.signature(model.forward).parameters)
        self._waiting: deque[_Text] = deque()
        self._batches: deque[_Batch] = deque()
        self._number = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to write."""
        return not self._waiting and not self._batches

    def add(self, request: TextRequest) -> int:
        """Take a text in; the number by which `step` and `cancel` know it.

        Raises:
            CapacityError: the prompt leaves no room in what the model reads.
            DataError: no prompt, tokens that the model has not, or values that mean nothing.
        """
        self._check(request)
        warpers, generator = LogitsProcessorList(), None
        if request.temperature > 0:
            warpers.append(TemperatureLogitsWarper(float(request.temperature)))
            if request.top_p < 1:
                warpers.append(TopPLogitsWarper(float(request.top_p)))
            generator = torch.Generator(self._model.device)
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed(request.seed)
        self._number += 1
        most = request.max_tokens
        if self._max_positions is not None:
            most = min(most, self._max_positions - len(request.prompt))
        written = WrittenText(self._tokenizer, request.stop)
        self._waiting.append(_Text(self._number, request, most, written, warpers, generator))
        return self._number

    def cancel(self, number: int) -> None:
        """Give a text up, if it is still there; its place is free at the next step."""
        for text in self._waiting:
            if text.number == number:
                self._waiting.remove(text)
                return
        for batch in self._batches:
            for text in batch.texts:
                text.is_cancelled = text.is_cancelled or text.number == number

    def clear(self) -> None:
        """Give all texts up."""
        self._waiting.clear()
        self._batches.clear()

    def step(self) -> list[tuple[int, TextPart]]:
        """The parts that one more token gives, of the texts of one batch; batches take turns.

        Raises:
            ModelError: the model gives values that are not finite; clear the writer then.
        """
        self._batches.extend(self._form_batches())
        while self._batches:
            batch = self._batches.popleft()
            if self._keep_rows(batch, [not text.is_cancelled for text in batch.texts]):
                break
        else:
            return []
        use = self._use_adapter
        with torch.inference_mode(), nullcontext() if use is None else use(batch.adapter):
            logits = self._run(batch)
        if not bool(torch.isfinite(torch.logsumexp(logits, dim=1)).all()):
            raise ModelError(
                f"the model gives logits that are not finite; its weights are broken, or overflow "
                f"in {self._model.dtype}: serve it with dtype float32"
            )
        parts, tokens, goes_on = [], [], []
        for row, text in enumerate(batch.texts):
            token = _choose_token(text, logits[row : row + 1])
            part = self._read_token(text, token)
            parts.append((text.number, part))
            tokens.append(token)
            goes_on.append(part.finish is None)
        batch.tokens = torch.tensor(tokens, device=logits.device)[:, None]
        batch.positions = batch.positions[:, -1:] + 1
        if self._keep_rows(batch, goes_on):
            batch.visible = torch.cat(
                [batch.visible, batch.visible.new_ones(len(batch.texts), 1)], dim=1
            )
            self._batches.append(batch)
        return parts

    def _check(self, request: TextRequest) -> None:
        problems = []
        if not request.prompt:
            problems.append("the prompt is empty; give at least one token")
        elif not 0 <= min(request.prompt) <= max(request.prompt) < self._vocabulary_size:
            problems.append(f"the prompt holds tokens outside 0..{self._vocabulary_size - 1}")
        if request.max_tokens < 1:
            problems.append(f"max_tokens={request.max_tokens}; write at least one")
        if not request.temperature >= 0:
            problems.append(f"temperature={request.temperature}; use 0 or more")
        if not 0 < request.top_p <= 1:
            problems.append(f"top_p={request.top_p}; use more than 0 and at most 1")
        if problems:
            raise DataError(join_problems("a text cannot be written", problems))
        most = self._max_positions
        if most is not None and len(request.prompt) >= most:
            raise CapacityError(
                f"the prompt has {len(request.prompt)} tokens, and the model reads {most} together "
                f"with its answer; shorten the prompt"
            )

    def _form_batches(self) -> list[_Batch]:
        """What waits, in batches of one adapter that fit into the cache; like lengths together."""
        waiting = sorted(
            self._waiting, key=lambda text: (text.request.adapter or "", len(text.request.prompt))
        )
        self._waiting.clear()
        groups: list[list[_Text]] = []
        for text in waiting:
            last = groups[-1] if groups else []
            longest = max(len(one.request.prompt) + one.most for one in (*last, text))
            fits = (len(last) + 1) * longest <= self._batch_tokens
            if last and fits and last[0].request.adapter == text.request.adapter:
                last.append(text)
            else:
                groups.append([text])
        return [self._open_batch(texts) for texts in groups]

    def _open_batch(self, texts: list[_Text]) -> _Batch:
        prompts = [np.array(text.request.prompt, dtype=np.int64) for text in texts]
        tokens, visible, positions = pad_left(prompts, self._model.device)
        cache = DynamicCache(config=self._model.config)
        return _Batch(texts, tokens, visible, positions, cache, texts[0].request.adapter)

    def _run(self, batch: _Batch) -> Tensor:
        """The (R, V) float32 logits of each text's next token."""
        offered = {
            "input_ids": batch.tokens,
            "attention_mask": batch.visible.long(),
            "position_ids": batch.positions,
            "past_key_values": batch.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        run: Any = self._model
        output = run(**{name: value for name, value in offered.items() if name in self._takes})
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _read_token(self, text: _Text, token: int) -> TextPart:
        text.n_tokens += 1
        if token in self._ends:
            return TextPart(text.written.finish(), 1, "stop")
        shown = text.written.feed(token)
        if text.written.is_stopped:
            return TextPart(shown, 1, "stop")
        if text.n_tokens == text.most:
            return TextPart(shown + text.written.finish(), 1, "length")
        return TextPart(shown, 1)

    @staticmethod
    def _keep_rows(batch: _Batch, stays: Sequence[bool]) -> bool:
        """Take rows out of a batch; False where none is left."""
        if all(stays):
            return bool(stays)
        rows = [row for row, stay in enumerate(stays) if stay]
        if not rows:
            return False
        index = torch.tensor(rows, device=batch.tokens.device)
        batch.texts = [batch.texts[row] for row in rows]
        batch.tokens, batch.visible = batch.tokens[index], batch.visible[index]
        batch.positions = batch.positions[index]
        cache: Any = batch.cache
        cache.reorder_cache(index)
        return True


def find_ends(model: PreTrainedModel, tokenizer: Any, chat: ChatFrame | None) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, the chat's, those of the generation config."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id}
    if chat is not None:
        ends.add(tokenizer.convert_tokens_to_ids(chat.end))
    return frozenset(int(end) for end in ends if end is not None)


def _choose_token(text: _Text, logits: Tensor) -> int:
    """The next token of one text.

    Shapes:
        logits: (1, V).
    """
    if text.generator is None:
        return int(logits.argmax(dim=-1))
    # The warpers look at the logits alone.
    warp: Any = text.warpers
    warped: Tensor = warp(torch.empty(1, 0, dtype=torch.long, device=logits.device), logits)
    drawn = torch.multinomial(warped.softmax(dim=-1), 1, generator=text.generator)
    return int(drawn)

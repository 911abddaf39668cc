"""Texts as OpenAI's clients read them: whole answers and the pieces of a stream.

Owns how completions and chat answers look. Knows no request and no engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from genrec.decode.writer import TextPart
from genrec.serve import logs
from genrec.serve.text_schemas import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    Completion,
    CompletionChoice,
    Usage,
)

Piece = dict[str, Any]
"""What one event of a stream says."""


@dataclass(slots=True)
class Progress:
    """What is known of one answer while it is written."""

    model: str
    n_prompt: int
    n_written: int = 0
    finish: Any = None
    created: int = field(default_factory=lambda: int(time.time()))

    def count(self, part: TextPart) -> None:
        """Add a part."""
        self.n_written += part.n_tokens
        self.finish = part.finish

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.n_prompt,
            completion_tokens=self.n_written,
            total_tokens=self.n_prompt + self.n_written,
        )


class CompletionForm:
    """How completions look."""

    def build_whole(self, done: Progress, text: str) -> BaseModel:
        """A finished text."""
        choice = CompletionChoice(text=text, finish_reason=done.finish)
        return Completion(**_build_head("cmpl", done), choices=[choice], usage=done.usage)

    def build_opening(self, done: Progress) -> list[Piece]:
        """What a stream says before any text."""
        return []

    def build_piece(self, done: Progress, part: TextPart) -> Piece:
        """A part of the text."""
        choice = CompletionChoice(text=part.text, finish_reason=part.finish)
        return self.build_frame(done) | {"choices": [choice.model_dump()]}

    def build_frame(self, done: Progress) -> Piece:
        """An event without text."""
        return _build_head("cmpl", done) | {"object": "text_completion", "choices": []}


class ChatForm:
    """How chat answers look."""

    def build_whole(self, done: Progress, text: str) -> BaseModel:
        """A finished answer."""
        choice = ChatChoice(message=AnswerMessage(content=text), finish_reason=done.finish)
        return ChatAnswer(**_build_head("chatcmpl", done), choices=[choice], usage=done.usage)

    def build_opening(self, done: Progress) -> list[Piece]:
        """What a stream says before any text: whose it is."""
        return [self._build_delta(done, {"role": "assistant", "content": ""}, None)]

    def build_piece(self, done: Progress, part: TextPart) -> Piece:
        """A part of the answer."""
        return self._build_delta(done, {"content": part.text}, part.finish)

    def build_frame(self, done: Progress) -> Piece:
        """An event without text."""
        return _build_head("chatcmpl", done) | {"object": "chat.completion.chunk", "choices": []}

    def _build_delta(self, done: Progress, delta: object, finish: str | None) -> Piece:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.build_frame(done) | {"choices": [choice]}


def _build_head(kind: str, done: Progress) -> Piece:
    name = f"{kind}-{logs.request_id.get()}"
    return {"id": name, "created": done.created, "model": done.model}

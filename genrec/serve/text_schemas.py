"""What goes in and out of the text routes, in the words of OpenAI's API.

Owns the shapes. Fields of theirs that would need another engine are there with the one value that
is served, so that a client that sends more is told, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from genrec.serve.schemas import Body, Name

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Zero = Annotated[float, Field(ge=0, le=0)]


class StreamOptions(Body):
    """What a stream says besides the text."""

    include_usage: bool = Field(False, description="A last event with token counts.")


class TextRequestBody(Body):
    """What both text routes take."""

    model: Name = Field(description="The served model's name, or an adapter's; see /v1/models.")
    max_tokens: int | None = Field(None, ge=1, description="At most so many tokens are written.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from this much probability.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Makes a draw repeatable.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Texts before which writing ends."
    )
    stream: bool = Field(False, description="Send the text as it is written.")
    stream_options: StreamOptions | None = None
    semantic_ids: bool = Field(
        False,
        description="genrec's own: semantic ids in the text, as /v1/recommendations gives them, "
        "are items; else they are characters like any other.",
    )
    user: str | None = Field(None, max_length=512, description="Not used.")
    n: Literal[1] = 1
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        given = self.stop or []
        return (given,) if isinstance(given, str) else tuple(given)


class CompletionRequest(TextRequestBody):
    """A text to go on from."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] = False
    logprobs: None = None
    suffix: None = None


class TextContent(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str = Field(max_length=200_000)


class ChatMessage(Body):
    """What somebody said."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=200_000)] | list[TextContent]
    name: Name | None = Field(None, description="Not used.")

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(TextRequestBody):
    """A conversation to answer."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer `max_tokens`.")
    logprobs: Literal[False] | None = None


class Usage(BaseModel):
    """Tokens read and written, end tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(BaseModel):
    """The text; in a stream a piece of it."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """A text that was written."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelEntry(BaseModel):
    """A name that `model` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "genrec"


class ModelList(BaseModel):
    """All names that `model` may have."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorDetail(BaseModel):
    """Why a request was not answered."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail

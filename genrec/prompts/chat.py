"""A language model's chat template as text around a prompt.

Owns what stands before and behind the user's message, and the token that ends the answer. Renders
the template once, around a marker, so that text from data never passes through it. Knows no data
and no instruction template.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError as JinjaError

from genrec.errors import DataError, ModelError, RecipeError
from genrec.prompts.sandbox import Rendered

# Plain letters: no template trims, splits or escapes them.
_USER = "GENRECUSERMESSAGE"
_ANSWER = "GENRECANSWER"
_MESSAGE = "GENRECMESSAGE"
# Llama 3.1 and others write today's date; a model must not see another prompt every day. The day
# is the one that Llama 3.2's own template falls back to.
_DAY = datetime.date(2024, 7, 26)
# What a template raises for messages that it does not foresee.
_REFUSALS = (JinjaError, TypeError, ValueError, KeyError, IndexError, AttributeError)
_FIELDS = ("before", "after", "end")


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What one chat template, with one system message, puts around every prompt.

    Attributes:
        before: up to the user's message, the begin token included where the template writes one.
        after: from the end of the user's message to where the answer begins.
        end: the token that ends the answer.
    """

    before: str
    after: str
    end: str

    def wrap(self, prompt: Rendered) -> Rendered:
        """The prompt as the user's message; what came from data in it stays marked."""
        shift = len(self.before)
        return Rendered(
            f"{self.before}{prompt.text}{self.after}",
            tuple((start + shift, end + shift) for start, end in prompt.spans),
        )

    def as_record(self) -> dict[str, str]:
        """What `read_chat` reads back."""
        return {name: getattr(self, name) for name in _FIELDS}


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody said; `role` is a word that chat templates know."""

    role: Literal["system", "user", "assistant"]
    content: Rendered


def frame_messages(tokenizer: Any, messages: Sequence[Message]) -> Rendered:
    """A conversation in a tokenizer's chat template, up to where the answer begins.

    The template sees markers only, so that no text of a message passes through it; what came from
    data in a message stays marked.

    Args:
        tokenizer: with a chat template.
        messages: at least one, oldest first.

    Raises:
        DataError: the template has no place for such a conversation.
    """
    markers = [f"{_MESSAGE}{number}END" for number in range(len(messages))]
    shown = [
        {"role": message.role, "content": marker}
        for message, marker in zip(messages, markers, strict=True)
    ]
    try:
        rest = _render(tokenizer, shown, add_generation_prompt=True)
    except _REFUSALS as error:
        raise DataError(
            f"the model's chat template refuses these messages ({error}); send the roles in the "
            f"order that it knows, such as user and assistant in turn"
        ) from error
    text, spans = "", []
    for message, marker in zip(messages, markers, strict=True):
        before, found, rest = rest.partition(marker)
        if not found or marker in rest:
            raise DataError(
                f"the model's chat template does not show a message of role {message.role!r} once, "
                f"in its place; send other messages"
            )
        text += before
        spans += [(start + len(text), end + len(text)) for start, end in message.content.spans]
        text += message.content.text
    return Rendered(text + rest, tuple(spans))


def read_chat(record: Mapping[str, str] | None) -> ChatFrame | None:
    """The frame in a model's settings; None for a model that was trained on plain text.

    Raises:
        ModelError: the record is not complete.
    """
    if record is None:
        return None
    if not all(isinstance(record.get(name), str) for name in _FIELDS):
        raise ModelError(
            f"the model's chat frame must hold the texts {', '.join(_FIELDS)}, and it is "
            f"{dict(record)!r}; run `genrec train` again"
        )
    return ChatFrame(**{name: record[name] for name in _FIELDS})


def build_chat(tokenizer: Any, system: str = "") -> ChatFrame | None:
    """The frame of a tokenizer's chat template; None where it has no template.

    The answer follows the template's own generation prompt, thinking switched off where the
    template knows `enable_thinking`. Dates that it writes are those of one fixed day.

    Args:
        tokenizer: any Hugging Face tokenizer.
        system: a system message; none if empty.

    Raises:
        RecipeError: a system message where no template is, or one that refuses or drops it.
        ModelError: the template does not show a message once and as it is.
    """
    name = repr(str(tokenizer.name_or_path))
    if not tokenizer.chat_template:
        if system:
            raise RecipeError(
                f"system {system!r} has no place: base model {name} has no chat template; leave "
                f"system empty, or choose a base model with one"
            )
        return None
    opening = [{"role": "system", "content": system}] if system else []
    question = [*opening, {"role": "user", "content": _USER}]
    try:
        prompt = _render(tokenizer, question, add_generation_prompt=True)
    except _REFUSALS as error:
        raise _explain_refusal(name, system, error) from error
    before, after = _split_once(prompt, _USER, name)
    if system.strip() not in before:
        raise RecipeError(
            f"system {system!r} is dropped by the chat template of base model {name}; leave system "
            f"empty, or put its words into the prompt templates"
        )
    return ChatFrame(before, after, _find_end(tokenizer, question, name))


def _render(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            date_string=_DAY.strftime("%d %b %Y"),
            strftime_now=_DAY.strftime,
        )
    )


def _explain_refusal(name: str, system: str, error: Exception) -> RecipeError | ModelError:
    if system:
        return RecipeError(
            f"the chat template of base model {name} refuses a system message ({error}); leave "
            f"system empty, or put its words into the prompt templates"
        )
    return ModelError(
        f"the chat template of base model {name} cannot show a user's message ({error}); set chat: "
        f"never for plain prompts"
    )


def _split_once(text: str, marker: str, name: str) -> tuple[str, str]:
    parts = text.split(marker)
    if len(parts) != 2:  # noqa: PLR2004
        raise ModelError(
            f"the chat template of base model {name} shows a message {len(parts) - 1} times, and "
            f"it must stand there once and as it is; set chat: never for plain prompts"
        )
    return parts[0], parts[1]


def _find_end(tokenizer: Any, question: list[dict[str, str]], name: str) -> str:
    """The token behind an answer: the template's, or the tokenizer's end where it writes none.

    Generation of a chat model stops at the template's, which base checkpoints do not call their
    end: Qwen3-Base ends texts with another token than turns.
    """
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    try:
        _, tail = _split_once(
            _render(tokenizer, answered, add_generation_prompt=False), _ANSWER, name
        )
    except _REFUSALS as error:
        raise ModelError(
            f"the chat template of base model {name} cannot show an answer ({error}); set chat: "
            f"never for plain prompts"
        ) from error
    special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    ends = [token for token in special if tail.strip().startswith(token)]
    end = max(ends, key=len, default=tokenizer.eos_token)
    if end is None:
        raise ModelError(
            f"neither the chat template nor the tokenizer of base model {name} has a token that "
            f"ends an answer; set its eos_token"
        )
    return str(end)

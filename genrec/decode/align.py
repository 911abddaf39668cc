"""Prompts that fill whole blocks of an engine's prefix cache.

Owns what may be done to a prompt so that its beams need not read its end again: filling it up for a
model that was trained so, or leaving the oldest items out where the user asks for that. Anything
else would change what the model is asked. Knows no template and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from genrec.errors import ModelError, RecipeError
from genrec.recipe import suggest_name

Align = Literal["keep", "drop"]
"""What is done to the prompts of a model that was not trained with padding: nothing, or the oldest
items are left out where that brings a prompt down to the end of a block."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How a model's prompts were filled up in training, and so are at inference.

    Attributes:
        block_tokens: a prompt's length is a multiple of this.
        token_id: what stands, as often as needed, between the prompt and the answer.
    """

    block_tokens: int
    token_id: int

    def count_missing(self, n_tokens: int) -> int:
        """How many tokens a prompt of this length lacks."""
        return -n_tokens % self.block_tokens

    def pad(self, prompt: Sequence[int]) -> list[int]:
        """The prompt with what it lacks at its end, where it moves no token of the prompt.

        Prompts that begin alike still do, so that the cache serves the next one of the same user.
        """
        return [*prompt, *[self.token_id] * self.count_missing(len(prompt))]

    def as_record(self) -> dict[str, int]:
        """What `read_padding` reads back."""
        return asdict(self)


def read_padding(record: Mapping[str, Any] | None) -> Padding | None:
    """The padding in a model's settings; None for a model that was trained without.

    Raises:
        ModelError: the record is not complete.
    """
    if record is None:
        return None
    try:
        padding = Padding(int(record["block_tokens"]), int(record["token_id"]))
    except (KeyError, TypeError, ValueError):
        padding = Padding(0, 0)
    if padding.block_tokens < 1:
        raise ModelError(
            f"the model's padding must hold block_tokens above 0 and a token_id, and it is "
            f"{record!r}; run `genrec train` again"
        )
    return padding


def find_padding(block_tokens: int, tokenizer: Any) -> Padding | None:
    """The padding of a model that is trained with this tokenizer; None for 0.

    A line break fills, which every tokenizer has a token for and no answer begins with.

    Args:
        block_tokens: of a block; 0 does not pad.
        tokenizer: the language model's.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    if not block_tokens:
        return None
    found = tokenizer.encode("\n", add_special_tokens=False)
    if not found or found[-1] == tokenizer.unk_token_id:
        raise ModelError(
            f"tokenizer {str(tokenizer.name_or_path)!r} has no token for a line break, which fills "
            f"prompts up; train with align: 0"
        )
    return Padding(block_tokens, int(found[-1]))


@dataclass(frozen=True, slots=True)
class Aligner:
    """What is done to the prompts of one model on one engine.

    Attributes:
        padding: how the model was trained; None without padding.
        drop_to: the block that prompts are cut down to where there is no padding; 0 cuts none.
    """

    padding: Padding | None = None
    drop_to: int = 0

    @classmethod
    def choose(cls, padding: Padding | None, align: str, engine: object) -> Aligner:
        """What a user's wish comes to with a model's padding and an engine's blocks.

        Raises:
            RecipeError: no such wish, or one that means nothing to this engine.
        """
        if align not in get_args(Align):
            raise RecipeError(f"align={align!r} is unknown; {suggest_name(align, get_args(Align))}")
        block = getattr(engine, "block_tokens", None)
        if align == "drop" and block is None:
            raise RecipeError(
                f"align='drop' shortens prompts to whole blocks of a prefix cache, and a "
                f"{type(engine).__name__} keeps none in blocks; use engine vllm, or align='keep'"
            )
        return cls(padding, int(block or 0) if align == "drop" else 0)

    def align(self, encode: Callable[[int], list[int]], n_items: int, max_items: int) -> list[int]:
        """A prompt as the model is to read it.

        Args:
            encode: the prompt's tokens without so many of the oldest items.
            n_items: how many items the history has, of which
            max_items: so many are shown at most.
        """
        if self.padding is not None:
            return self.padding.pad(encode(0))
        if not self.drop_to:
            return encode(0)
        hidden = max(n_items - max_items, 0)
        return drop_oldest(lambda n: encode(hidden + n), n_items - hidden, self.drop_to)


def drop_oldest(encode: Callable[[int], list[int]], n_items: int, block_tokens: int) -> list[int]:
    """The prompt without its oldest items, as far as they reach over the end of a block.

    At least as many whole blocks stay as the prompt had, and at least one item; what still reaches
    over is shorter than one more item. A prompt that is shorter than a block stays as it is.

    Args:
        encode: the prompt's tokens without so many of the oldest items.
        n_items: how many items it shows.
        block_tokens: of a block.
    """
    shortest = encode(0)
    whole = len(shortest) // block_tokens * block_tokens
    for n_dropped in range(1, n_items if whole else 0):
        shorter = encode(n_dropped)
        if len(shorter) < whole:
            break
        shortest = shorter
    return shortest

"""Text out of tokens as they come: whole characters only, and nothing of a stop text.

Owns what of a text may be shown already. Knows no model and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class WrittenText:
    """The text of one answer, fed a token at a time."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """Begin an empty text.

        Args:
            tokenizer: a fast Hugging Face tokenizer; its special tokens are not shown.
            stop: texts before which the text ends; empty ones do not count.
        """
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(text for text in stop if text)
        self._held = ""  # what may be the beginning of a stop text
        self.is_stopped = False

    def feed(self, token: int) -> str:
        """What can be shown after one more token; sets `is_stopped` where a stop text is whole."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        ends = [place for place in map(self._held.find, self._stop) if place >= 0]
        if ends:
            self.is_stopped = True
            self._held = self._held[: min(ends)]
            return self.finish()
        keep = self._count_doubtful()
        shown, self._held = self._held[: len(self._held) - keep], self._held[-keep:] if keep else ""
        return shown

    def finish(self) -> str:
        """What was still held back; a character that was begun and not ended is left out."""
        shown, self._held = self._held, ""
        return shown

    def _count_doubtful(self) -> int:
        """How many characters at the end begin a stop text."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

"""What a history costs in tokens, and how much of it fits.

Owns counting and cutting, the same for training rows and at inference: the oldest items go first,
and an item is shown whole or not at all. Knows no corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from genrec.errors import ModelError
from genrec.prompts.recipe import Template
from genrec.types import IndexArray

BYTES_PER_TOKEN = 3
"""Fewer than real tokenizers need for English titles (about 4), so that a limit is kept."""


@dataclass(frozen=True, slots=True)
class HistoryForm:
    """How a template shows each item of a history.

    Attributes:
        ids: how many times by semantic id.
        titles: how many times by title.
        between: tokens of what stands between two items, all times together.
    """

    ids: int
    titles: int
    between: int


def find_form(template: Template) -> HistoryForm:
    """How the template shows histories; a field that is no list of titles counts as one of ids.

    What stands between two items is counted in bytes, so that ids need no tokenizer.
    """
    histories = [name for name in template.fields if name.startswith("history")]
    titles = sum("title" in name for name in histories)
    ids = max(len(histories) - titles, 0 if titles else 1)
    between = int(count_text_tokens([template.separator], None)[0])
    return HistoryForm(ids, titles, between * (ids + titles))


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """Most tokens of a history, and the tokenizer that counts titles (None: by bytes)."""

    most: int
    count_with: str | None = None

    def find_start(self, template: Template, sids: Sequence[str], titles: Sequence[str]) -> int:
        """The place of the oldest item that is shown.

        Args:
            template: how the items are shown.
            sids: their semantic ids, oldest first, at least one.
            titles: their titles, where the template shows titles.
        """
        form = find_form(template)
        costs = form.ids * np.array([count_sid_tokens(sid) for sid in sids], dtype=np.int64)
        if form.titles:
            costs += form.titles * count_text_tokens(titles, self.count_with)
        ends, earliest = np.array([len(sids)]), np.array([0])
        return int(find_starts(costs, form.between, ends, earliest, self.most)[0])


def count_sid_tokens(sid: str) -> int:
    """How many tokens a semantic id is: one a level."""
    return sid.count("<")


def count_text_tokens(texts: Sequence[str], count_with: str | None) -> IndexArray:
    """(N,) the tokens of each text.

    Args:
        texts: N texts.
        count_with: hub name or directory of a tokenizer; None counts three UTF-8 bytes as a token,
            rounded up.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    if count_with is None:
        sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts])
        return -(-sizes.astype(np.int64) // BYTES_PER_TOKEN)
    tokenizer = load_counter(count_with)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)


@lru_cache(maxsize=4)
def load_counter(name: str) -> Any:
    """The tokenizer of that name or directory, loaded once.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, and seldom needed

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"no tokenizer {name!r} to count tokens with ({first}); name a directory that has one, "
            f"or leave count_with unset: three bytes then count as a token"
        ) from error


def find_starts(
    costs: IndexArray, between: int, ends: IndexArray, earliest: IndexArray, most: int
) -> IndexArray:
    """(R,) where the longest runs of items begin that end before `ends` and cost at most `most`.

    The newest item is always in, whatever it costs: a prompt without history asks nothing.

    Args:
        costs: (M,) tokens of each item, by place.
        between: tokens of what stands between two items.
        ends: (R,) the place after the last item of each run.
        earliest: (R,) where a run may begin; below its end.
        most: tokens that a run may have.
    """
    # Each item pays for the separator before it, and the first one's is given back.
    total = np.concatenate([[0], np.cumsum(costs + between)])
    starts = np.searchsorted(total, total[ends] - (most + between), side="left")
    return np.asarray(np.minimum(np.maximum(starts, earliest), ends - 1), dtype=np.int64)

"""Ids that are titles: token sequences of different lengths, no two alike.

Owns how titles become unique and how they are cut into tokens. Knows no language model: a Hugging
Face tokenizer only cuts.

Source: title indexing, as Hua et al. 2023 ("How to index item IDs", section 3) compare it. There
equal titles share an id; here a later one gets " (2)" and so on.

Every sequence ends in code 0, the end, and is filled up with it to the length of the longest. So
IDs of different lengths fit one table, and no title is the beginning of another.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from genrec.errors import ArtifactError, DataError, ModelError, join_problems
from genrec.recipe import expand_path
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.named_codes import refuse_vectors
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray

_TITLES, _TOKENS, _LEVELS = "title.titles", "title.tokens", "title.n_levels"
# A word with the space before it, other space, or one other character: joined, they are the title.
_WORD = re.compile(r" ?[^\W_]+|\s+|.", flags=re.DOTALL)
_log = logging.getLogger(__name__)

Cut = Callable[[str], list[str]]


class Title:
    """The quantizer `title`: codes are places in a list of tokens, 0 being the end."""

    def __init__(self, recipe: TokenizeRecipe, dimensions: int) -> None:
        """No title is known before fitting or restoring."""
        del dimensions
        self._recipe = recipe
        self._take_over({}, [], 0)

    def _take_over(self, titles: dict[str, str], tokens: list[str], n_levels: int) -> None:
        self._titles = titles
        self._tokens = tokens
        self._codes = {token: code for code, token in enumerate(tokens, start=1)}
        self._n_levels = n_levels

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The same at each level: all tokens and the end."""
        return (len(self._tokens) + 1,) * self._n_levels

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """None: codes do not come from vectors."""
        return ()

    def fit(self, given: FitInput) -> list[dict[str, float]]:
        """Make the titles unique and collect their tokens; there is no loss.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        cut = _find_cut(self._recipe)
        titles = dict(zip(given.item_ids, self._name_items(given, cut, ()), strict=True))
        pieces = [cut(title) for title in titles.values()]
        tokens = sorted({token for row in pieces for token in row})
        self._take_over(titles, tokens, max(map(len, pieces)) + 1)
        return []

    def _name_items(self, given: FitInput, cut: Cut, taken: Sequence[str]) -> list[str]:
        """A title for each item that no other has; an item without one is named by its id."""
        values = self._recipe.title
        titles = []
        unnamed = 0
        for item_id, title in zip(given.item_ids, given.titles, strict=True):
            unnamed += not title.strip()
            text = title if title.strip() else item_id
            text = text.lower() if values.lowercase else text
            titles.append("".join(cut(text)[: values.max_tokens]))
        if unnamed:
            _log.info("title: %s items have no title and are named by their ids", f"{unnamed:,}")
        return make_distinct(titles, taken)

    def encode(self, given: FitInput) -> CodeArray:
        """The codes of items, by the titles they were given, or by new ones.

        Raises:
            DataError: new titles with tokens that no fitted title has, or longer than all.
            ModelError: the tokenizer cannot be loaded.
        """
        cut = _find_cut(self._recipe)
        new = [row for row, item_id in enumerate(given.item_ids) if item_id not in self._titles]
        texts = [self._titles.get(item_id, "") for item_id in given.item_ids]
        if new:
            part = given.select_items(np.array(new, dtype=np.int64))
            named = self._name_items(part, cut, tuple(self._titles.values()))
            for row, title in zip(new, named, strict=True):
                texts[row] = title
        return self._look_up(given.item_ids, [cut(text) for text in texts])

    def _look_up(self, item_ids: Sequence[str], pieces: list[list[str]]) -> CodeArray:
        codes = np.zeros((len(pieces), self._n_levels), dtype=np.int32)
        problems = []
        for row, (item_id, tokens) in enumerate(zip(item_ids, pieces, strict=True)):
            unknown = [token for token in tokens if token not in self._codes]
            if unknown:
                problems.append(f"{item_id!r}: no fitted title holds {unknown[0]!r}")
            elif len(tokens) >= self._n_levels:
                problems.append(
                    f"{item_id!r}: {len(tokens)} tokens, but the longest title has "
                    f"{self._n_levels - 1}"
                )
            else:
                codes[row, : len(tokens)] = [self._codes[token] for token in tokens]
        if problems:
            raise DataError(
                join_problems(
                    "these titles cannot be written in the fitted titles' tokens; fit a tokenizer "
                    "to the whole catalogue",
                    problems,
                )
            )
        return codes

    def spell_codes(self, codes: CodeArray) -> list[str]:
        """The title of each row of codes (N, L)."""
        rows = ([self._tokens[code - 1] for code in row if code] for row in codes.tolist())
        return ["".join(row) for row in rows]

    def project(self, given: FitInput) -> NoReturn:
        """Refuse; there are no latents.

        Raises:
            DataError: always.
        """
        raise refuse_vectors(self._recipe, f"{given.n_items:,} items have no latents")

    def decode_codes(self, codes: CodeArray) -> NoReturn:
        """Refuse; codes stand for no vectors.

        Raises:
            DataError: always.
        """
        raise refuse_vectors(self._recipe, f"{len(codes):,} titles stand for no vectors")

    def list_weights(self) -> dict[str, NDArray[Any]]:
        """Each item's title, the list of tokens, and how many levels there are."""
        levels = np.array([self._n_levels], dtype=np.int64)
        titles, tokens = _pack_json(self._titles), _pack_json(self._tokens)
        return {_TITLES: titles, _TOKENS: tokens, _LEVELS: levels}

    def restore_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        """Take over what `list_weights` gave.

        Raises:
            ArtifactError: names that are none of these.
        """
        names = {_TITLES, _TOKENS, _LEVELS}
        if weights.keys() != names:
            raise ArtifactError(
                f"weights {sorted(weights)} are not those of 'title': {sorted(names)}"
            )
        titles, tokens = (
            json.loads(weights[name].tobytes().decode("utf-8", "surrogatepass"))
            for name in (_TITLES, _TOKENS)
        )
        self._take_over(titles, tokens, int(weights[_LEVELS][0]))


def _pack_json(value: Any) -> NDArray[np.uint8]:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return np.frombuffer(text, dtype=np.uint8).copy()


def make_distinct(titles: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The titles, equal ones told apart: the second gets " (2)", and so on, in their order.

    A title keeps its own text wherever it is the first to have it, also where that reads " (2)".

    Args:
        titles: in catalogue order.
        taken: titles that are given out already.
    """
    held = set(taken) | set(titles)
    seen = set(taken)
    last: dict[str, int] = {}
    result = []
    for title in titles:
        name = title
        if title in seen:
            number = last.get(title, 1) + 1
            while f"{title} ({number})" in held:
                number += 1
            last[title] = number
            name = f"{title} ({number})"
            held.add(name)
        seen.add(name)
        result.append(name)
    return result


def _find_cut(recipe: TokenizeRecipe) -> Cut:
    """How a text is cut into tokens that join to the same text."""
    name = recipe.title.tokenizer
    if name == "words":
        return _WORD.findall
    # Takes seconds to import, and only this way of cutting needs it.
    from transformers import AutoTokenizer  # noqa: PLC0415

    path = expand_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"title.tokenizer {name!r} cannot be loaded: {error}\nGive the name or path of a "
            f"Hugging Face tokenizer, or use title.tokenizer=words, which needs no download"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"title.tokenizer {name!r} has no tokenizer.json, which says where tokens begin; use "
            f"another, or title.tokenizer=words"
        )
    return lambda text: _cut_text(tokenizer, text)


def _cut_text(tokenizer: Any, text: str) -> list[str]:
    """The parts of a text that a fast tokenizer's tokens cover; what none covers goes before one.

    Several tokens may share one character (bytes of an emoji): they count as one part.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = sorted({end for start, end in spans if end > start} | {len(text)})
    starts = [0, *ends[:-1]]
    return [text[start:end] for start, end in zip(starts, ends, strict=True) if end > start]

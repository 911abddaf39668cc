"""Which codes an item has, had, or gets.

Owns what an item is as clients describe it, and the rule that no code moves: an item's own are its
own, whether it is there or away, and a new one gets free ones. Knows no file and no version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.catalogue import Catalogue
from genrec.data.catalogue import read_field
from genrec.errors import DataError, join_problems
from genrec.serve.catalogue_state import Codes, StoredItem
from genrec.serve.item_encoder import ItemEncoder
from genrec.tokenizers.sid_text import parse_sid
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item as a client describes it.

    Attributes:
        item_id: its id; of an item that is there, the description replaces the one before.
        title, brand, categories, description, price: as in a source of `genrec data`.
        embedding: its vector, where the client has one; None has the text embedded.
        available: whether it can be had; None leaves that as it is, and a new item available.
    """

    item_id: str
    title: str
    brand: str = ""
    categories: str = ""
    description: str = ""
    price: float | str | None = None
    embedding: Sequence[float] | None = None
    available: bool | None = None


class ItemCodes:
    """The codes of the model's own items and, given a tokenizer, of those that come later."""

    def __init__(self, own: Catalogue, encoder: ItemEncoder | None, why_no_encoder: str) -> None:
        """Join the model's items with the tokenizer that they have their codes from.

        Args:
            own: the model's items.
            encoder: that tokenizer; without it, only items that had codes have any.
            why_no_encoder: for messages.
        """
        self._own = own
        self._encoder = encoder
        self._why_no_encoder = why_no_encoder

    def require_encoder(self, problem: str) -> ItemEncoder:
        """The tokenizer; `problem` says in a message what cannot be done without it.

        Raises:
            DataError: there is none.
        """
        if self._encoder is None:
            raise DataError(
                f"{problem}, and this server has none to give: {self._why_no_encoder}; start it "
                f"with --tokenizer DIR"
            )
        return self._encoder

    def find_own(self, item_id: str) -> StoredItem:
        """One of the model's own items as it was."""
        row, index = self._own.rows[item_id], self._own.index
        categories = index["categories"][row] if "categories" in index.columns else None
        codes = parse_sid(self._own.sids[row])
        return StoredItem(item_id, self._own.titles[row], categories or "", "", codes)

    def recall(self, item_id: str, later: Mapping[str, Codes]) -> Codes | None:
        """The codes that are an item's own; None for one that never was.

        Args:
            item_id: whose.
            later: those of items that came after the model was made.
        """
        row = self._own.rows.get(item_id)
        if row is not None:
            return parse_sid(self._own.sids[row])
        known = later.get(item_id)
        if known is None and self._encoder is not None:
            known = self._encoder.retired.get(item_id)
        return known

    def plan(self, items: Sequence[NewItem], later: Mapping[str, Codes]) -> list[StoredItem]:
        """The items as they are stored, with their own codes where they have any, else free ones.

        Args:
            items: no id twice.
            later: as for `recall`; none of these is given to another item.

        Raises:
            CapacityError: no room for all of them.
            DataError: a new item with neither text nor embedding, or no tokenizer.
        """
        texts = [self._render(item) for item in items]
        codes = {item.item_id: self.recall(item.item_id, later) for item in items}
        fresh = [place for place, item in enumerate(items) if codes[item.item_id] is None]
        if fresh:
            new = [items[place] for place in fresh]
            encoder = self.require_encoder(f"{new[0].item_id!r} is new and needs codes")
            vectors = _find_vectors(encoder, new, [texts[place] for place in fresh])
            ids = [item.item_id for item in new]
            found = encoder.code_items(ids, vectors, _stack_taken(encoder, later))
            codes |= zip(ids, map(tuple, found.tolist()), strict=True)
        planned = []
        for item, text in zip(items, texts, strict=True):
            own = codes[item.item_id]
            assert own is not None, "known or given above"
            title, categories = read_field(item.title), read_field(item.categories)
            planned.append(StoredItem(item.item_id, title, categories, text, own))
        return planned

    def _render(self, item: NewItem) -> str:
        if self._encoder is None or not self._encoder.can_render:
            return ""
        names = ("title", "brand", "categories", "description", "price")
        return self._encoder.render_text({name: getattr(item, name) for name in names})


def _stack_taken(encoder: ItemEncoder, later: Mapping[str, Codes]) -> CodeArray:
    """The codes that no new item gets: of all items that are there or ever were."""
    tokenizer = encoder.tokenizer
    n_levels = tokenizer.n_levels
    stacks = (
        tokenizer.codes,
        tokenizer.lineage.retired_codes.reshape(-1, n_levels),
        np.array(list(later.values()), dtype=np.int32).reshape(-1, n_levels),
    )
    return np.concatenate(stacks)


def _find_vectors(
    encoder: ItemEncoder, items: Sequence[NewItem], texts: Sequence[str]
) -> FloatArray | None:
    """The vectors of new items: those that came with them, and of the others the texts'."""
    dimensions = encoder.tokenizer.fitted.dimensions
    if not dimensions:
        return None
    problems = []
    for item, text in zip(items, texts, strict=True):
        if item.embedding is not None and len(item.embedding) != dimensions:
            problems.append(
                f"{item.item_id!r}: an embedding of {len(item.embedding)} numbers, but the "
                f"tokenizer was fitted to {dimensions}"
            )
        elif item.embedding is None and encoder.can_render and not text:
            problems.append(f"{item.item_id!r}: neither text nor embedding")
    if problems:
        raise DataError(join_problems("items that cannot get codes", problems))
    vectors = np.zeros((len(items), dimensions), dtype=np.float32)
    unknown = [row for row, item in enumerate(items) if item.embedding is None]
    if unknown:
        vectors[unknown] = encoder.embed_texts([texts[row] for row in unknown])
    for row, item in enumerate(items):
        if item.embedding is not None:
            vectors[row] = item.embedding
    return vectors

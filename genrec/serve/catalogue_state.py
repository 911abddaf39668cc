"""What a version of the catalogue holds, as values: what differs from the model's own items.

Owns how changes are applied, reversed and spelled in JSON. Knows no file, model or trie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Action = Literal["start", "add", "remove", "availability", "rollback"]
Codes = tuple[int, ...]
_CHUNK_ITEMS = 1000


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item that came after the model was made, or was given another title.

    Attributes:
        text: what its codes were made from; empty where that is unknown.
    """

    item_id: str
    title: str
    categories: str
    text: str
    codes: Codes

    def spell(self) -> list[Any]:
        """Plain JSON values."""
        return [self.item_id, self.title, self.categories, self.text, list(self.codes)]

    @classmethod
    def read(cls, values: Sequence[Any]) -> Self:
        """What `spell` gave."""
        item_id, title, categories, text, codes = values
        return cls(item_id, title, categories, text, tuple(codes))


@dataclass(frozen=True, slots=True)
class Change:
    """From one version to the next.

    Attributes:
        items: that come, or have another title or other categories from now on.
        removed: ids that go.
        off: ids that cannot be had any more, though they stay.
        on: ids that can be had again.
    """

    items: tuple[StoredItem, ...] = ()
    removed: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    on: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.items or self.removed or self.off or self.on)

    def spell(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "items": [item.spell() for item in self.items],
            "removed": list(self.removed),
            "off": list(self.off),
            "on": list(self.on),
        }

    @classmethod
    def read(cls, record: dict[str, Any]) -> Self:
        """What `spell` gave."""
        return cls(
            tuple(map(StoredItem.read, record["items"])),
            tuple(record["removed"]),
            tuple(record["off"]),
            tuple(record["on"]),
        )


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What is told of a version.

    Attributes:
        version: from 1, which is the model's own items.
        time: when it was made, UTC.
        action: what made it.
        items: how many items it has.
        added, updated, removed: how many items the change came to, and
        switched: how many became available or no longer are.
        content_of: of a rollback, the version that it brought back.
    """

    version: int
    time: str
    action: Action
    items: int
    added: int = 0
    updated: int = 0
    removed: int = 0
    switched: int = 0
    content_of: int | None = None


@dataclass(slots=True)
class Holding:
    """A version's difference from the model's own items.

    Attributes:
        items: that are not the model's own, or not as they were, by id.
        gone: the model's own items that were removed.
        off: items that cannot be had.
        codes: of every item that any version had besides the model's own: they stay the item's,
            also while it is away. Only a rollback's target lacks those of later versions.
    """

    items: dict[str, StoredItem] = field(default_factory=dict)
    gone: dict[str, None] = field(default_factory=dict)
    off: dict[str, None] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)

    def apply(self, change: Change, is_own: Callable[[str], bool]) -> None:
        """Go on to the next version.

        Args:
            change: to it.
            is_own: whether an id is one of the model's own items.
        """
        for item_id in change.removed:
            self.items.pop(item_id, None)
            self.off.pop(item_id, None)
            if is_own(item_id):
                self.gone[item_id] = None
        for item in change.items:
            self.items[item.item_id] = item
            self.gone.pop(item.item_id, None)
            if not is_own(item.item_id):
                self.codes[item.item_id] = item.codes
        self.off.update(dict.fromkeys(change.off))
        for item_id in change.on:
            self.off.pop(item_id, None)

    def diff(self, target: Holding, own_item: Callable[[str], StoredItem]) -> Change:
        """The change that leads from here to what another version held.

        Args:
            target: the other version.
            own_item: one of the model's own items as it was.
        """
        items, removed = [], []
        for item_id in self.items | target.items | self.gone | target.gone:
            find_own = None if item_id in self.codes else own_item
            now, then = self._find(item_id, find_own), target._find(item_id, find_own)
            if then is None and now is not None:
                removed.append(item_id)
            elif then is not None and then != now:
                items.append(then)
        leaving = set(removed)
        return Change(
            items=tuple(items),
            removed=tuple(removed),
            off=tuple(item_id for item_id in target.off if item_id not in self.off),
            on=tuple(item_id for item_id in self.off if item_id not in leaving | target.off.keys()),
        )

    def _find(
        self, item_id: str, own_item: Callable[[str], StoredItem] | None
    ) -> StoredItem | None:
        """An item as it is here, or None; `own_item` is None for those that are not the model's."""
        found = self.items.get(item_id)
        if found is None and own_item is not None and item_id not in self.gone:
            found = own_item(item_id)
        return found

    def spell(self) -> Iterator[dict[str, Any]]:
        """Plain JSON values, in pieces of some thousand items each."""
        for key, values in (
            ("items", [item.spell() for item in self.items.values()]),
            ("gone", list(self.gone)),
            ("off", list(self.off)),
            ("codes", [[item_id, *codes] for item_id, codes in self.codes.items()]),
        ):
            for start in range(0, len(values), _CHUNK_ITEMS):
                yield {key: values[start : start + _CHUNK_ITEMS]}

    @classmethod
    def read(cls, records: Iterable[dict[str, Any]]) -> Self:
        """What `spell` gave."""
        held = cls()
        for record in records:
            for values in record.get("items", ()):
                item = StoredItem.read(values)
                held.items[item.item_id] = item
            held.gone.update(dict.fromkeys(record.get("gone", ())))
            held.off.update(dict.fromkeys(record.get("off", ())))
            held.codes.update((row[0], tuple(row[1:])) for row in record.get("codes", ()))
        return held


def write_time() -> str:
    """Now, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

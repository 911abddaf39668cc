"""Changes as values: applied, reversed, spelled."""

from __future__ import annotations

import json
import random

import pytest

from genrec.serve.catalogue_state import Change, Holding, StoredItem

OWN = [f"own{number}" for number in range(6)]
LATER = [f"new{number}" for number in range(6)]


def own_item(item_id: str) -> StoredItem:
    return StoredItem(item_id, f"title of {item_id}", "", "", (OWN.index(item_id), 0))


def later_item(item_id: str, title: str) -> StoredItem:
    return StoredItem(item_id, title, "A > B", f"title: {title}", (LATER.index(item_id), 1))


def see_items(held: Holding) -> dict[str, tuple[str, str, tuple[int, ...], bool]]:
    """What a reader sees of a version."""
    items = {item_id: own_item(item_id) for item_id in OWN if item_id not in held.gone}
    items |= held.items
    return {
        item_id: (item.title, item.categories, item.codes, item_id not in held.off)
        for item_id, item in items.items()
    }


def make_change(held: Holding, chance: random.Random) -> Change:
    """A change as the store makes them: what it names is as it says."""
    seen = see_items(held)
    pick = [item_id for item_id in [*OWN, *LATER] if chance.random() < 0.3]
    action = chance.choice(["add", "remove", "switch"])
    if action == "add":
        title = f"title {chance.randrange(3)}"
        items = [
            later_item(item_id, title)
            if item_id in LATER
            else StoredItem(item_id, title, "", "", own_item(item_id).codes)
            for item_id in pick
        ]
        return Change(items=tuple(items))
    present = [item_id for item_id in pick if item_id in seen]
    if action == "remove":
        return Change(removed=tuple(present))
    off = tuple(item_id for item_id in present if item_id not in held.off)
    on = tuple(item_id for item_id in present if item_id in held.off)
    return Change(off=off, on=on)


@pytest.mark.parametrize("seed", range(20))
def test_any_version_can_be_brought_back_from_any_other(seed: int) -> None:
    chance = random.Random(seed)
    held = Holding()
    versions = [Holding()]
    for _ in range(12):
        change = make_change(held, chance)
        again = Change.read(json.loads(json.dumps(change.spell())))
        assert again == change
        held.apply(again, OWN.__contains__)
        copy = Holding.read(json.loads(json.dumps(list(held.spell()))))
        assert copy == held
        versions.append(copy)
    for old in versions:
        now = Holding.read(held.spell())
        codes_before = dict(now.codes)
        back = now.diff(old, own_item)
        if see_items(now) == see_items(old):
            assert not back.removed and not back.off and not back.on
        now.apply(back, OWN.__contains__)
        assert see_items(now) == see_items(old)
        assert now.codes == codes_before  # what went away keeps its codes
        assert not now.diff(old, own_item)


def test_codes_outlive_their_items() -> None:
    held = Holding()
    held.apply(Change(items=(later_item("new0", "x"), own_item("own0"))), OWN.__contains__)
    held.apply(Change(removed=("new0", "own0")), OWN.__contains__)
    assert held.codes == {"new0": (0, 1)}
    assert list(held.gone) == ["own0"] and not held.items


def test_a_large_state_is_spelled_in_pieces() -> None:
    held = Holding(codes={f"item{number}": (number, 1) for number in range(2500)})
    pieces = list(held.spell())
    assert [len(piece["codes"]) for piece in pieces] == [1000, 1000, 500]
    assert Holding.read(pieces) == held
    assert not list(Holding().spell()) and not Change()

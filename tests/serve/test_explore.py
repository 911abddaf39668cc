"""Items by words and codes by prefix, as the playground shows them."""

from __future__ import annotations

import polars as pl
import pytest

from genrec.catalogue import Catalogue
from genrec.decode.trie import Trie
from genrec.errors import DecodeError
from genrec.serve.playground.explore import FoundItem, find_items, list_branches

CODES = [[0, 0], [0, 1], [2, 0], [0, 5]]
INDEX = pl.DataFrame(
    {
        "item_id": ["i1", "i2", "X(3", "red"],
        "title": ["Red Tent for two", "Tent", "Stove, red.", ""],
        "sid": [f"<a_{a}><b_{b}>" for a, b in CODES],
        "categories": ["Camp > Tents", "Camp > Tents", "Camp", None],
    }
)


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(INDEX)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tent", ["i2", "i1"]),
        ("RED", ["red", "i1", "X(3"]),
        ("red  tent", ["i1"]),
        ("x(3", ["X(3"]),
        ("red.", ["X(3"]),
        ("nothing", []),
        ("", ["i1", "i2", "X(3", "red"]),
    ],
)
def test_every_word_must_be_in_the_title(catalogue: Catalogue, text: str, found: list[str]) -> None:
    assert [item.item_id for item in find_items(catalogue, text, 10)] == found
    assert len(find_items(catalogue, text, 1)) == min(1, len(found))


def test_items_are_described(catalogue: Catalogue) -> None:
    assert find_items(catalogue, "tent", 1) == [
        FoundItem("i2", "Tent", "<a_0><b_1>", "Camp > Tents")
    ]
    bare = Catalogue(INDEX.drop("categories"))
    assert find_items(bare, "tent", 1)[0].categories == ""


def test_branches_count_what_is_below(catalogue: Catalogue) -> None:
    trie = Trie.from_codes(CODES)
    top = list_branches(catalogue, trie, ())
    assert [(b.code, b.n_items, b.item) for b in top] == [(0, 3, None), (2, 1, None)]
    assert top[0].examples == ("Red Tent for two", "Tent", "red")
    leaves = list_branches(catalogue, trie, (0,))
    assert [b.item.item_id for b in leaves if b.item] == ["i1", "i2", "red"]
    with pytest.raises(DecodeError, match="no item's codes begin with"):
        list_branches(catalogue, trie, (1,))
    with pytest.raises(DecodeError, match="a prefix of 2 codes has nothing below it"):
        list_branches(catalogue, trie, (0, 1))

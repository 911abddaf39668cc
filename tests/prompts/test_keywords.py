"""Keywords and preferences: which words, from whose texts, and the same every time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.prompts.corpus import Corpus
from genrec.prompts.keywords import (
    find_intended,
    find_item_keywords,
    find_item_queries,
    find_terms,
    find_worded,
    read_intentions,
    read_range_keywords,
)
from genrec.prompts.preferences import describe_ranges, find_described, name_most_frequent
from genrec.prompts.render import CleanText

from .rich_corpus import make_corpus, make_items

TITLES = ["Brass lamp lamp lamp", "Brass hat", "Plain brass brush", "Felt hat", "", "12 34 xy"]
SAID = ["Shines brightly", "Fits", "Shines dimly", "Warm", None, "Shines brightly, warm"]


def make_small(**values: object) -> Corpus:
    """Two users of three choices each; both chose item 0, and the second user item 4, textless."""
    n_items = len(TITLES)
    empty = pl.Series([""] * n_items)
    items = make_items(n_items).with_columns(
        title=pl.Series(TITLES), brand=empty, categories=empty, description=empty
    )
    events = pl.DataFrame({"review_text": SAID, "rating": [5.0] * 6})
    walks = [[0, 1, 2], [3, 4, 0]]
    return make_corpus(walks, n_items=n_items, items=items, events=events, **values)


def places(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def test_item_keywords_are_the_words_that_tell_items_apart() -> None:
    keywords = find_item_keywords(make_small())
    # `brass` is in three of six items, half and no more; `lamp` weighs more, as it comes thrice.
    assert keywords == ["lamp, brass", "hat, brass", "brush, plain, brass", "felt, hat", "", ""]
    assert all(isinstance(text, CleanText) for text in keywords)
    assert find_item_queries(make_small())[2] == "brush plain brass"


def make_titled(titles: list[str], **values: object) -> Corpus:
    """Items of these titles and no other text, of which nothing was said."""
    empty = pl.Series([""] * len(titles))
    items = make_items(len(titles)).with_columns(
        title=pl.Series(titles), brand=empty, categories=empty, description=empty
    )
    return make_corpus([[0, 1]], n_items=len(titles), items=items, events=pl.DataFrame(), **values)


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_halves_of_words_and_pieces_of_addresses_are_no_keywords(apostrophe: str) -> None:
    said = f"wasn{apostrophe}t tin of Amazon.com, Applebee{apostrophe}s; it does"
    corpus = make_titled([said, "hat", "box", "bag"])
    assert find_item_keywords(corpus)[0] == "amazon, applebee, tin"


def test_a_word_that_the_limit_cut_is_no_keyword() -> None:
    titles = ["velvet curtains", "hat", "box", "bag"]
    assert find_item_keywords(make_titled(titles, max_text_characters=12))[0] == "velvet"
    assert find_item_keywords(make_titled(titles, max_text_characters=6))[0] == "velvet"
    assert find_item_keywords(make_titled(titles))[0] == "curtains, velvet"


def test_a_word_of_most_items_is_no_keyword() -> None:
    corpus = make_corpus([[0, 1]], n_items=8)  # every title says "Lamp number"
    assert "lamp" not in find_terms(corpus).names
    assert find_item_keywords(corpus)[0] == "acme"


def test_as_many_keywords_as_the_recipe_says() -> None:
    assert find_item_keywords(make_small(keywords=1))[2] == "brush"
    short = find_item_keywords(make_small(max_text_characters=9))
    assert max(map(len, short)) == 9


def test_intentions_leave_the_choices_own_review_out() -> None:
    corpus = make_small(keywords=9)
    own, others = read_intentions(corpus, places(0, 5))
    # Item 0 was reviewed by both users: each sees the other's words and the item's own.
    assert set(own.split(", ")) == {"lamp", "brass", "shines", "brightly", "warm"}
    assert set(others.split(", ")) == {"lamp", "brass", "shines", "brightly"}
    # Item 3 has one review, the row's own; item 4 has neither text nor review.
    assert read_intentions(corpus, places(3, 4)) == ["felt, hat", ""]
    assert find_intended(corpus, places(0, 3, 4, 5)).tolist() == [True, True, False, True]


def test_what_was_left_out_decides_whether_there_is_an_intention() -> None:
    items = make_items(2).with_columns(
        **{name: pl.lit("") for name in ("title", "brand", "categories", "description")}
    )
    events = pl.DataFrame({"review_text": ["Shines", "Warm", None]})
    corpus = make_corpus([[0, 1], [0]], n_items=2, items=items, events=events)
    assert find_intended(corpus, places(0, 1, 2)).tolist() == [False, False, True]
    assert read_intentions(corpus, places(0, 1, 2)) == ["", "", "shines"]


def test_keywords_of_a_range_are_of_its_reviews_or_else_of_its_items() -> None:
    corpus = make_small(keywords=9)
    found = read_range_keywords(corpus, places(0, 0, 3, 4, 2), places(1, 2, 5, 5, 2))
    assert found[0] == "brightly, shines"
    assert set(found[1].split(", ")) == {"brightly", "shines", "fits"}
    assert found[2] == "warm"  # a review at place 3 silences the titles of places 3 and 4
    assert found[3:] == ["", ""]  # item 4 has no text; an empty range
    assert find_worded(corpus).tolist() == [True, True, True, True, False, True]


def test_without_reviews_ranges_speak_by_titles() -> None:
    corpus = make_corpus([[0, 1, 2], [1, 2, 3]], n_items=8, events=pl.DataFrame())
    assert read_range_keywords(corpus, places(0, 3), places(2, 4)) == [
        "acme, zed",
        "zed",
    ]


def test_keywords_are_the_same_every_time() -> None:
    first, again = make_small(), make_small()
    assert find_item_keywords(first) == find_item_keywords(again)
    rows = places(5, 0, 3)
    assert read_intentions(first, rows) == read_intentions(again, rows)
    assert read_intentions(first, rows[::-1]) == read_intentions(first, rows)[::-1]
    assert find_terms(first) is find_terms(first.with_pass(1))


def test_data_without_a_word() -> None:
    items = make_items(3).with_columns(
        **{name: pl.lit("12 !?") for name in ("title", "brand", "categories", "description")}
    )
    corpus = make_corpus([[0, 1, 2]], n_items=3, items=items, events=pl.DataFrame())
    assert find_item_keywords(corpus) == ["", "", ""]
    assert read_intentions(corpus, places(0, 2)) == ["", ""]
    assert read_range_keywords(corpus, places(0), places(3)) == [""]
    assert not find_worded(corpus).any()
    assert not find_intended(corpus, places(0, 1)).any()


def test_text_from_data_stays_data() -> None:
    items = make_items(4).with_columns(title=pl.Series(["<a_12> {{ lamp }}", "[INST]", "x", "y"]))
    corpus = make_corpus([[0, 1]], n_items=4, items=items, events=pl.DataFrame())
    assert not set("<>{}[]_") & set("".join(find_item_keywords(corpus)))


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_rows_than_asked(most: int) -> None:
    corpus = make_small(keywords=most)
    assert max(len(text.split(", ")) for text in find_item_keywords(corpus)) <= most


def test_preferences_name_what_comes_most_often() -> None:
    corpus = make_corpus([[0, 4, 3], [1, 2, 5]], n_items=8, keywords=2)
    kinds = [f"Kind {item % 4}" for item in range(8)]
    start, end = places(0, 3), places(3, 6)
    # Items 0 and 4 are of kind 0, item 3 of kind 3; of equally frequent ones the first comes first.
    values = [CleanText(kind) for kind in kinds]
    assert name_most_frequent(corpus, values, start, end)[0] == "Kind 0, Kind 3"
    said = describe_ranges(corpus, start, end)
    assert said[0].startswith("Kind 0, Kind 3; products by Acme, Zed; the topics ")
    assert said[0].count(",") == 3
    assert find_described(corpus).all()


def test_preferences_read_on_after_a_verb() -> None:
    corpus = make_corpus([[0, 4, 3]], n_items=8, events=pl.DataFrame(), keywords=1)
    assert describe_ranges(corpus, places(0), places(1)) == [
        "Kind 0; products by Acme; the topic acme"
    ]


def test_preferences_of_those_who_chose_nothing_described() -> None:
    items = make_items(3).with_columns(
        **{name: pl.lit("") for name in ("title", "brand", "categories", "description")}
    )
    corpus = make_corpus([[0, 1, 2]], n_items=3, items=items, events=pl.DataFrame())
    assert describe_ranges(corpus, places(0), places(3)) == [""]
    assert not find_described(corpus).any()

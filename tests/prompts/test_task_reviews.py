"""Review and explanation rows: what counts as a reason, and what is shown of a review."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.explanations import find_explanation, find_mates, read_features

from .conftest import sid_of
from .rich_corpus import find_subjects, make_corpus, make_items, read


def review(*texts: str | None, titles: tuple[str | None, ...] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rating": [float(1 + place % 5) for place in range(len(texts))],
            "review_text": list(texts),
            "review_title": list(titles or [f"Title {n}" for n in range(len(texts))]),
        },
        schema={"rating": pl.Float64, "review_text": pl.String, "review_title": pl.String},
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It works as expected. I would buy it again.", "It works as expected."),
        ("Great! Love it. My niece was happy with it!", "My niece was happy with it!"),
        ("no full stop in the whole of this", "no full stop in the whole of this"),
        ("Costs 4.50 at the till? Yes.", "Costs 4.50 at the till?"),
        ("这个礼品卡非常好用我很喜欢。我会再买一次的。", "这个礼品卡非常好用我很喜欢。"),
        ("Yummy", ""),
        ("", ""),
    ],
)
def test_an_explanation_is_the_first_sentence_that_says_something(text: str, sentence: str) -> None:
    assert find_explanation(text) == sentence


def test_reviews_are_shown_where_they_are() -> None:
    events = review(None, "Fits my shoe very well.", "Broke on day one.", titles=("", None, "Poor"))
    corpus = make_corpus([[0, 1, 2]], events=events)
    assert find_subjects("review-title", corpus, "review_text", "review_title").tolist() == [2]
    assert find_subjects("review-rating", corpus, "review_text", "rating").tolist() == [1, 2]
    assert find_subjects("review-text", corpus, "review_title", "review_text").tolist() == [2]
    place = np.array([2])
    assert read("review-title", "review_text", corpus, place) == ["Broke on day one."]
    assert read("review-title", "review_title", corpus, place) == ["Poor"]
    assert read("review-rating", "rating", corpus, place) == ["3"]
    assert read("review-rating", "opinion", corpus, place) == ["dislike"]
    assert find_subjects("explanation", corpus, "explanation").tolist() == [1, 2]
    assert read("explanation", "explanation", corpus, place) == ["Broke on day one."]


def test_a_title_that_repeats_the_text_is_no_answer_and_no_hint() -> None:
    events = review(
        "Great gift idea", "Works as it should.", titles=("GREAT gift idea!", "Works. As it should")
    )
    corpus = make_corpus([[0, 1]], events=events)
    assert find_subjects("review-title", corpus, "review_title").tolist() == [1]
    assert find_subjects("review-text", corpus, "review_title").tolist() == [1]
    assert find_subjects("explanation", corpus, "review_title", "explanation").tolist() == [1]
    assert find_subjects("review-rating", corpus, "review_title", "rating").tolist() == [0, 1]


def test_reviews_are_cut() -> None:
    corpus = make_corpus([[0]], events=review("word " * 50), max_review_characters=24)
    assert read("review-title", "review_text", corpus, np.array([0])) == [
        "word word word word word"
    ]


def test_a_feature_word_is_rare_but_shared() -> None:
    events = review(
        "The brass lamp shines well.",
        "This brass thing bends easily.",
        "A lamp that shines well at night.",
        "Lamp shines.",  # too short for a word of its own
        "Nothing else here agrees with anybody.",
    )
    corpus = make_corpus([[0, 1, 2, 3, 4]], events=events)
    assert read_features(corpus) == ["brass", "brass", "lamp", "", ""]
    assert find_subjects("explanation", corpus, "feature").tolist() == [0, 1, 2]
    assert read("explanation", "feature", corpus, np.array([0, 3])) == ["brass", ""]


def test_shared_brands_and_kinds_name_the_latest_like_item() -> None:
    # Brand by item % 3, kind by item % 4.
    corpus = make_corpus([[0, 3, 1, 4, 4, 8], [6, 2]])
    assert find_mates(corpus, "brand").tolist() == [-1, 0, -1, 2, -1, -1, -1, -1]
    assert find_mates(corpus, "categories").tolist() == [-1, -1, -1, 0, -1, 4, -1, 6]
    places = find_subjects("explain-recommendation", corpus, "shared_brand", "brand_mate")
    assert places.tolist() == [1, 3]
    assert read("explain-recommendation", "shared_brand", corpus, places) == ["Acme", "Zed"]
    assert read("explain-recommendation", "brand_mate", corpus, places) == [sid_of(0), sid_of(1)]
    kinds = find_subjects("explain-recommendation", corpus, "shared_kind", "kind_mate_title")
    assert kinds.tolist() == [3, 5, 7]
    assert read("explain-recommendation", "shared_kind", corpus, kinds) == [
        "Kind 0",
        "Kind 0",
        "Kind 2",
    ]
    titles = read("explain-recommendation", "kind_mate_title", corpus, kinds)
    assert titles == ["Lamp number 0", "Lamp number 4", "Lamp number 6"]


def test_items_without_brand_or_title_share_nothing() -> None:
    bare = make_items(40).with_columns(brand=pl.lit(""), title=pl.lit(""))
    corpus = make_corpus([[0, 3, 4]], items=bare)
    assert len(find_subjects("explain-recommendation", corpus, "shared_brand")) == 0
    assert find_subjects("explain-recommendation", corpus, "shared_kind").tolist() == [2]
    assert len(find_subjects("explain-recommendation", corpus, "kind_mate_title")) == 0


def test_an_item_too_long_ago_is_not_named() -> None:
    corpus = make_corpus([[0, 1, 2, 4, 5, 7, 3]])  # max_history is 5, and item 0 is 6 places back
    assert find_mates(corpus, "brand")[-1] == -1


def test_reasons_are_not_in_the_question() -> None:
    shown = TASKS["explain-recommendation"].input_fields
    assert not {"brand", "categories", "text", "description", "review_title"} & shown.keys()


def test_an_item_that_the_token_limit_drops_is_not_named() -> None:
    walk = [0, 1, 2, 3]  # items 0 and 3 are of one brand
    assert find_mates(make_corpus([walk]), "brand").tolist() == [-1, -1, -1, 0]
    short = make_corpus([walk], max_history_tokens=10)
    assert find_mates(short, "brand").tolist() == [-1, -1, -1, -1]
    assert not len(find_subjects("explain-recommendation", short, "shared_brand"))
    wide = make_corpus([walk], max_history_tokens=1000)
    assert find_mates(wide, "brand").tolist() == [-1, -1, -1, 0]

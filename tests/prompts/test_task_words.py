"""Tasks between words and items or users: fusion, search, preferences, keywords, users by id."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import SidText
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.candidates import find_candidates

from .conftest import sid_of
from .rich_corpus import find_subjects, make_corpus, make_events, make_items, make_walks, read

WALKS = [[0, 1, 2], [3, 4, 0, 1]]


def places(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def test_fusion_reads_titles_to_ids_and_ids_to_text() -> None:
    corpus = make_corpus(WALKS)
    subjects = find_subjects("titles-to-sid", corpus)
    assert subjects.tolist() == [1, 2, 4, 5, 6]
    shown = read("titles-to-sid", "history_titles", corpus, subjects)
    assert shown[1] == "Lamp number 0; Lamp number 1"
    assert TASKS["titles-to-sid"].input_fields.keys() == {"history_titles"}
    assert read("titles-to-sid", "sid", corpus, subjects)[1] == sid_of(2)
    assert read("history-to-title", "title", corpus, subjects)[1] == "Lamp number 2"
    assert read("history-to-title", "brand", corpus, subjects)[1] == "Blue"
    users, items = TASKS["history-to-title"].find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([0, 0, 1, 1, 1], [1, 2, 4, 0, 1])


def test_search_takes_the_items_own_column_first() -> None:
    items = make_items(40).with_columns(
        intention=pl.Series(["", "a bright light", *[None] * 38]),
        query=pl.Series([None, None, "find two", *[""] * 37]),
    )
    corpus = make_corpus(WALKS, items=items)
    subjects = find_subjects("item-search", corpus, "intention")
    intentions = read("item-search", "intention", corpus, subjects)
    assert intentions[0] == intentions[-1] == "a bright light"
    assert "brass" in intentions[3]  # item 0 by the other user's review: place 0
    queries = read("search-with-history", "query", corpus, subjects)
    assert queries[1] == "find two"
    assert queries[0] == read("query-suggestion", "query", corpus, subjects)[0] == "zed"
    assert find_subjects("query-suggestion", corpus, "query").tolist() == subjects.tolist()


def test_without_any_words_search_is_off() -> None:
    items = make_items(40).with_columns(
        **{name: pl.lit("") for name in ("title", "brand", "categories", "description")}
    )
    corpus = make_corpus(WALKS, items=items, events=pl.DataFrame())
    for task, field in (
        ("item-search", "intention"),
        ("search-with-history", "query"),
        ("history-to-preference", "preference"),
        ("history-to-preference", "favourite_kinds"),
        ("history-to-preference", "favourite_brands"),
        ("user-to-preference", "preference"),
        ("keywords-to-item", "user_keywords"),
        ("review-to-user", "review_text"),
    ):
        assert not len(find_subjects(task, corpus, field)), task


def test_preferences_are_of_what_came_before_the_last_choice() -> None:
    corpus = make_corpus(WALKS, keywords=1)
    subjects = find_subjects("history-to-preference", corpus, "preference")
    assert subjects.tolist() == [2, 6]
    assert read("history-to-preference", "favourite_brands", corpus, subjects) == [
        "Acme, Zed",
        "Acme, Zed",
    ]
    assert read("history-to-preference", "favourite_kinds", corpus, subjects) == [
        "Kind 0, Kind 1",
        "Kind 0, Kind 3",
    ]
    text = read("history-to-preference", "preference", corpus, subjects)[0]
    assert text.startswith("Kind 0, Kind 1; products by Acme, Zed; the topic ")
    users, items = TASKS["history-to-preference"].find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([0, 1], [-1, -1])


def test_the_users_own_preference_comes_first() -> None:
    table = pl.DataFrame({"preference": ["likes light", None]})
    corpus = replace(make_corpus(WALKS), users=table)
    for task in ("history-to-preference", "user-to-preference", "preference-to-user"):
        texts = read(task, "preference", corpus, find_subjects(task, corpus, "preference"))
        assert texts[0] == "likes light"
        assert texts[1].startswith("Kind 0")


def test_a_users_whole_walk_makes_the_preference_of_the_index() -> None:
    corpus = make_corpus(WALKS)
    rows = find_subjects("user-to-preference", corpus)
    assert rows.tolist() == [0, 1]
    text = read("user-to-preference", "preference", corpus, rows)[0]
    assert text.startswith("Kind 0, Kind 1, Kind 2; products by Acme, Zed, Blue")
    assert read("preference-to-user", "user_sid", corpus, rows) == ["<ua_0><ub_0>", "<ua_1><ub_0>"]
    users, items = TASKS["user-to-preference"].find_owners(corpus, rows)
    assert (users.tolist(), items.tolist()) == ([0, 1], [-1, -1])


def test_without_a_tokenizer_of_users_their_ids_are_off() -> None:
    corpus = replace(make_corpus(WALKS), user_sids=None)
    for task in ("preference-to-user", "review-to-user", "user-to-item", "user-to-preference"):
        assert not len(find_subjects(task, corpus, "user_sid")), task
    assert len(find_subjects("user-to-item", corpus, "user_id")) == 7


def test_reviews_lead_to_who_wrote_them() -> None:
    corpus = make_corpus(WALKS)
    subjects = find_subjects("review-to-user", corpus, "review_text", "user_sid")
    assert subjects.tolist() == list(range(7))
    assert read("review-to-user", "review_text", corpus, subjects)[1] == "The brass is thin. Broke."
    assert read("review-to-user", "review_title", corpus, subjects)[1] == "Opinion 1"
    assert read("review-to-user", "item", corpus, subjects)[1] == sid_of(1)
    assert read("review-to-user", "user_sid", corpus, subjects)[3] == "<ua_1><ub_0>"


def test_straightforward_rows_have_every_choice_and_no_history() -> None:
    corpus = make_corpus(WALKS)
    task = TASKS["user-to-item"]
    assert task.find_subjects(corpus, PromptsRecipe()).tolist() == list(range(7))
    assert not any(name.startswith("history") for name in task.input_fields)
    assert read("user-to-item", "user_id", corpus, places(0, 3)) == ["u0", "u1"]
    assert read("user-to-item", "sid", corpus, places(3)) == [sid_of(3)]


@pytest.fixture
def cold() -> Corpus:
    said = ["Velvet curtain", "Walnut shelf", "Copper pan", "", None, "Marble bowl", "Jade cup"]
    events = make_events(7).with_columns(
        review_text=pl.Series(said), review_title=pl.Series([""] * 7)
    )
    return make_corpus(WALKS, events=events, keywords=9, candidates=6)


def test_user_keywords_are_of_earlier_reviews_alone(cold: Corpus) -> None:
    subjects = find_subjects("keywords-to-item", cold, "user_keywords")
    words = read("keywords-to-item", "user_keywords", cold, subjects)
    assert subjects.tolist() == [1, 2, 4, 5, 6]
    assert set(words[0].split(", ")) == {"curtain", "velvet"}
    assert set(words[1].split(", ")) == {"curtain", "velvet", "shelf", "walnut"}
    # The second user wrote nothing about the first two items: their own texts speak.
    assert words[2] == "acme"
    assert set(words[4].split(", ")) == {"bowl", "marble"}
    assert not any("copper" in text or "jade" in text for text in words)
    target = read("history-to-keywords", "user_keywords", cold, subjects)
    assert target == words


def test_ranked_answers_begin_with_the_chosen_item(cold: Corpus) -> None:
    subjects = find_subjects("keyword-rerank", cold, "user_keywords", "ranked", "ranked_titles")
    offered = find_candidates(cold, subjects)
    ranked = read("keyword-rerank", "ranked", cold, subjects)
    titles = read("keyword-rerank", "ranked_titles", cold, subjects)
    for row, subject in enumerate(subjects.tolist()):
        sids = ranked[row].split("; ")
        assert len(sids) == len(set(sids)) == 5
        assert sids[0] == sid_of(int(cold.walks.item_index[subject]))
        assert set(sids) <= {sid_of(item) for item in offered[row].tolist()}
        assert titles[row].startswith(f"Lamp number {cold.walks.item_index[subject]}; ")
    assert isinstance(ranked[0], SidText)
    # Place 4: the user's word is the brand `acme`, which every third item has.
    items = [int(title.split()[-1]) for title in titles[2].split("; ")][1:]
    assert [item % 3 == 0 for item in items] == sorted(item % 3 == 0 for item in items)[::-1]


def test_candidates_are_told_with_their_keywords(cold: Corpus) -> None:
    subjects = find_subjects("keyword-rerank", cold, "candidate_keywords")
    text = read("keyword-rerank", "candidate_keywords", cold, subjects)[0].split("; ")
    assert len(text) == 6
    assert text[0].startswith("1. Lamp number ")
    assert all(part.endswith((" (acme)", " (zed)", " (blue)")) for part in text)
    bare = make_items(40).with_columns(
        **{name: pl.lit("") for name in ("title", "brand", "categories", "description")}
    )
    silent = make_corpus(WALKS, items=bare.with_columns(title=pl.lit("1 2")), candidates=3)
    told = read("keyword-rerank", "candidate_keywords", silent, places(1))[0]
    assert told == "1. 1 2; 2. 1 2; 3. 1 2"


def test_the_reranked_offer_is_the_same_in_every_process() -> None:
    corpus = make_corpus(make_walks(), candidates=6)
    subjects = find_subjects("keyword-rerank", corpus, "user_keywords")
    whole = read("keyword-rerank", "ranked", corpus, subjects)
    assert read("keyword-rerank", "ranked", corpus, subjects[5:9]) == whole[5:9]
    assert read("keyword-rerank", "ranked", corpus.with_pass(1), subjects) != whole

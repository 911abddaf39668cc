"""Rows that offer items: the right one at any place alike, wrong ones never the user's."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest

from genrec.prompts.corpus import Corpus
from genrec.prompts.negatives import count_spare, draw_negatives
from genrec.prompts.render import SidText
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.candidates import (
    find_candidates,
    find_lists,
    find_next_choices,
    find_pairs,
    find_rankings,
)
from genrec.prompts.tasks.yes_no import find_offered

from .conftest import sid_of
from .rich_corpus import find_subjects, make_corpus, make_items, make_walks, read


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(make_walks(n_users=300), candidates=8)


def find_history(corpus: Corpus, place: int) -> set[int]:
    walks = corpus.walks
    user = walks.owner[place]
    return set(walks.item_index[walks.offsets[user] : walks.offsets[user + 1]].tolist())


@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_wrong_items_are_new_to_the_user_and_different(negatives: str) -> None:
    corpus = make_corpus(make_walks(n_users=40), negatives=negatives)
    places = np.arange(320)
    drawn = draw_negatives(corpus, "x", places, 12)
    for place, row in zip(places, drawn.tolist(), strict=True):
        assert len(set(row)) == 12 and min(row) >= 0
        assert find_history(corpus, place).isdisjoint(row)
    # A row is the same whatever stands beside it, and another in another pass.
    assert (draw_negatives(corpus, "x", places[5:9], 12) == drawn[5:9]).all()
    assert (draw_negatives(corpus.with_pass(1), "x", places, 12) != drawn).any()


def test_popular_items_are_drawn_as_often_as_they_are_chosen() -> None:
    # Item 0 is chosen by 30 users, items 1 to 3 by 10 each; the user asked about has only item 9.
    walks = [[0]] * 30 + [[1 + user % 3] for user in range(30)] + [[9]] * 4000
    corpus = make_corpus(walks, n_items=10)
    drawn = draw_negatives(corpus, "x", np.arange(60, 4060), 1)[:, 0]
    counts = np.bincount(drawn, minlength=10)
    # Nearly every draw meets item 9, so that most rows are filled from the rest, by the same rule.
    assert counts[9] == 0 and counts[4:9].sum() == 0
    assert abs(counts[:4] - np.array([2000, 667, 667, 667])).max() < 5 * np.sqrt(2000)
    alike = make_corpus(walks, n_items=10, negatives="uniform")
    even = np.bincount(draw_negatives(alike, "x", np.arange(60, 4060), 1)[:, 0], minlength=10)
    assert abs(even[:9] - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)


def test_what_the_rounds_leave_open_is_filled_whatever_the_rule() -> None:
    # Both users have all but three items, and ten others are asked for: every row ends in the rest.
    walks = [list(range(197)), list(range(3, 200))]
    for negatives in ("uniform", "popularity"):
        corpus = make_corpus(walks, n_items=200, negatives=negatives)
        drawn = draw_negatives(corpus, "x", np.array([0, 300]), 10)
        assert {frozenset(row) - {-1} for row in drawn.tolist()} == {
            frozenset({197, 198, 199}),
            frozenset({0, 1, 2}),
        }
        assert (drawn[:, 3:] == -1).all()


def test_small_catalogues_give_what_they_have(caplog: pytest.LogCaptureFixture) -> None:
    corpus = make_corpus([[0, 1, 2, 3], [4], [0, 1, 2, 3, 4]], n_items=5, candidates=4)
    places = np.arange(10)
    assert count_spare(corpus, places).tolist() == [1, 1, 1, 1, 4, 0, 0, 0, 0, 0]
    drawn = draw_negatives(corpus, "x", places, 3)
    assert drawn[0].tolist() == [4, -1, -1]
    assert set(drawn[4].tolist()) < {0, 1, 2, 3} and min(drawn[4]) >= 0
    assert (drawn[5:] == -1).all()
    assert find_subjects("next-choice", corpus, "candidates").tolist() == [1, 2, 3]
    assert find_subjects("next-yes-no", corpus, "answer").tolist() == [1, 2, 3]
    assert "catalogue has" not in caplog.text
    text = read("next-choice", "candidates", corpus, np.array([2]))[0]
    assert sorted(text.split("; ")) == [sid_of(2), sid_of(4)]
    few = make_corpus([[0, 1, 2, 3]], n_items=5, candidates=20)
    with caplog.at_level(logging.WARNING):
        find_subjects("direct-choice", few)
    assert "candidates: 20, but the catalogue has 5 items" in caplog.text


def test_candidates_hold_the_answer_once_at_any_place(corpus: Corpus) -> None:
    places = find_subjects("next-choice", corpus, "candidates", "sid")
    lists = find_candidates(corpus, places)
    right = corpus.walks.item_index[places]
    assert lists.shape == (2100, 8)
    assert ((lists == right[:, None]).sum(axis=1) == 1).all()
    counts = np.bincount((lists == right[:, None]).argmax(axis=1), minlength=8)
    assert abs(counts - 2100 / 8).max() < 5 * np.sqrt(2100 / 8)
    for place, row in zip(places[:200], lists[:200].tolist(), strict=True):
        assert len(set(row)) == 8
        assert len(find_history(corpus, place) & set(row)) == 1


def test_candidates_are_shown_by_id_by_title_and_by_number(corpus: Corpus) -> None:
    place = np.array([11])
    items = find_candidates(corpus, place)[0].tolist()
    right = int(corpus.walks.item_index[11])
    shown = read("next-choice", "candidates", corpus, place)[0]
    assert isinstance(shown, SidText) and shown == "; ".join(sid_of(item) for item in items)
    titles = [f"Lamp number {item}" for item in items]
    assert read("direct-choice", "candidate_titles", corpus, place) == ["; ".join(titles)]
    numbered = read("next-choice", "candidates_numbered", corpus, place)[0].split("; ")
    assert numbered == [f"{n}. {title}" for n, title in enumerate(titles, start=1)]
    assert read("next-choice", "number", corpus, place) == [str(items.index(right) + 1)]
    assert read("next-choice", "sid", corpus, place) == [sid_of(right)]
    assert read("next-choice", "title", corpus, place) == [f"Lamp number {right}"]
    assert TASKS["next-choice"].input_fields["candidates"].trusted
    assert not TASKS["next-choice"].input_fields["candidate_titles"].trusted


def test_a_title_that_comes_twice_or_is_missing_is_no_answer() -> None:
    titles = ["Lamp", "Lamp", "", "Hat", "Bag", "Box", "Rug", "Pan"]
    items = make_items(8).with_columns(title=pl.Series(titles))
    corpus = make_corpus([[3, 0, 4, 2, 5]], n_items=8, items=items, candidates=4)
    for task, field in (
        ("next-choice", "candidate_titles"),
        ("next-choice", "candidates_numbered"),
        ("pairwise", "first_title"),
        ("keyword-rerank", "candidate_keywords"),
    ):
        assert find_subjects(task, corpus, field).tolist() == [2, 4], task
    assert find_subjects("next-choice", corpus, "candidates").tolist() == [1, 2, 3, 4]
    # A list may hold three right ones, and each must be told from the rest.
    assert find_subjects("listwise", corpus, "chosen").tolist() == [1, 2, 3]
    assert not len(find_subjects("listwise", corpus, "chosen_titles"))


def test_pairs_put_the_answer_first_as_often_as_second(corpus: Corpus) -> None:
    places = find_subjects("pairwise", corpus, "first", "second_title", "letter")
    pairs, right = find_pairs(corpus, places), corpus.walks.item_index[places]
    letters = read("pairwise", "letter", corpus, places)
    assert [pair["AB".index(x)] for pair, x in zip(pairs.tolist(), letters, strict=True)] == (
        right.tolist()
    )
    assert abs(letters.count("A") - len(places) / 2) < 5 * np.sqrt(len(places) / 4)
    one = places[:1]
    assert read("pairwise", "first", corpus, one) == [sid_of(pairs[0, 0])]
    assert read("pairwise", "second_title", corpus, one) == [f"Lamp number {pairs[0, 1]}"]


def test_yes_and_no_are_even_and_true(corpus: Corpus) -> None:
    places = find_subjects("next-yes-no", corpus, "sid", "title", "brand", "answer")
    offered = find_offered(corpus, places)
    answers = read("next-yes-no", "answer", corpus, places)
    assert abs(answers.count("Yes") - len(places) / 2) < 5 * np.sqrt(len(places) / 4)
    for place, item, answer in zip(places, offered.tolist(), answers, strict=True):
        if answer == "Yes":
            assert item == corpus.walks.item_index[place]
        else:
            assert item not in find_history(corpus, place)
    assert read("next-yes-no", "sid", corpus, places[:1]) == [sid_of(offered[0])]
    assert read("direct-yes-no", "title", corpus, places[:1]) == [f"Lamp number {offered[0]}"]
    assert read("direct-yes-no", "brand", corpus, places[:1]) == [
        ("Acme", "Zed", "Blue")[offered[0] % 3]
    ]
    # Without a history the first choice counts too.
    assert len(find_subjects("direct-yes-no", corpus)) == len(places) + 300


def test_offered_items_with_gaps_in_their_text() -> None:
    rows = make_items(40).to_dicts()
    rows[3]["title"] = rows[3]["brand"] = ""
    corpus = make_corpus(make_walks(), items=type(make_items(1))(rows), candidates=30)
    assert len(find_subjects("next-yes-no", corpus, "title")) > 0
    assert len(find_subjects("next-yes-no", corpus, "brand")) == 0  # only as an optional field
    places = find_subjects("next-choice", corpus, "candidate_titles")
    assert any("untitled" in t for t in read("next-choice", "candidate_titles", corpus, places))
    assert any("untitled" in t for t in read("next-choice", "candidates_numbered", corpus, places))
    offered = find_offered(corpus, places)
    titles = read("next-yes-no", "title", corpus, places)
    assert {t for t, item in zip(titles, offered, strict=True) if item == 3} <= {"untitled"}


def test_lists_hold_the_next_choices_and_their_order() -> None:
    corpus = make_corpus([[0, 1, 2, 3, 4], [5, 6], [7, 8, 8, 9]])
    places = find_subjects("listwise", corpus, "candidates", "ranked")
    assert places.tolist() == [1, 2, 3, 8, 9]  # places with a past and two different items to come
    chosen = find_next_choices(corpus, places)
    assert chosen.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, -1], [8, 9, -1], [8, 9, -1]]
    ranked, lists = find_rankings(corpus, places), find_lists(corpus, places)
    assert (np.sort(ranked, axis=1) == np.sort(lists, axis=1)).all()
    counts = np.bincount(corpus.walks.item_index, minlength=40)
    for place, row, mine in zip(places, ranked.tolist(), chosen.tolist(), strict=True):
        ours = [item for item in mine if item >= 0]
        assert row[: len(ours)] == ours and len(set(row)) == len(row) == 6
        rest = row[len(ours) :]
        assert find_history(corpus, place).isdisjoint(rest)
        assert (np.diff(counts[rest]) <= 0).all()
    owners = TASKS["listwise"].find_owners(corpus, places)
    assert [part.tolist() for part in owners] == [[0, 0, 0, 2, 2], [3, 4, 4, 9, 9]]
    text = read("listwise", "ranked", corpus, places[:1])[0]
    assert text == "; ".join(sid_of(item) for item in ranked[0])
    assert read("listwise", "chosen", corpus, places[2:3]) == [f"{sid_of(3)}; {sid_of(4)}"]
    titles = read("listwise", "chosen_titles", corpus, places[2:3])
    assert titles == ["Lamp number 3; Lamp number 4"]


def test_the_last_list_of_each_user() -> None:
    corpus = make_corpus([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]], targets="last")
    assert find_subjects("listwise", corpus).tolist() == [3, 8]
    short = make_corpus([[0], [1, 2]], targets="last")
    assert find_subjects("listwise", short).tolist() == []


def test_the_first_listed_is_at_any_place(corpus: Corpus) -> None:
    places = find_subjects("listwise", corpus, "candidates")
    lists, right = find_lists(corpus, places), corpus.walks.item_index[places]
    counts = np.bincount((lists == right[:, None]).argmax(axis=1), minlength=6)
    assert abs(counts - len(places) / 6).max() < 5 * np.sqrt(len(places) / 6)


def test_nobody_has_chosen_anything() -> None:
    empty = make_corpus([])
    for task in (
        "next-choice",
        "direct-choice",
        "pairwise",
        "listwise",
        "next-yes-no",
        "rating-shots",
    ):
        fields = {**TASKS[task].input_fields, **TASKS[task].target_fields}
        assert len(find_subjects(task, empty, *fields)) == 0

"""Rating rows and examples of ratings: as the data write them, and never from the future."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.prompts.corpus import Corpus
from genrec.prompts.render import SidText
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.ratings import read_ratings
from genrec.prompts.tasks.shots import find_item_shots, find_own_shots

from .conftest import sid_of
from .rich_corpus import find_subjects, make_corpus, make_events, make_walks, read


def rate(ratings: list[float | None], times: list[float] | None = None) -> pl.DataFrame:
    table = pl.DataFrame({"rating": ratings}, schema={"rating": pl.Float32})
    return table if times is None else table.with_columns(pl.Series("timestamp", times))


@pytest.mark.parametrize(
    ("ratings", "written", "ends", "liked"),
    [
        ([5, 3, 4.0, 1], ["5", "3", "4", "1"], ("1", "5"), ["4", "5"]),
        ([4.5, 0.5, 3.5, 4.0], ["4.5", "0.5", "3.5", "4"], ("0.5", "5"), ["4", "4.5"]),
        ([3, 9, 7, 8], ["3", "9", "7", "8"], ("1", "10"), ["8", "9"]),
        ([0, 1, 1, 0], ["0", "1", "1", "0"], ("0", "1"), ["1"]),
        ([120, 64, 80, 60], ["120", "64", "80", "60"], ("1", "120"), ["120"]),
        ([4.3, 2.1, None, 5], ["4.3", "2.1", "", "5"], ("1", "5"), ["4.3", "5"]),
    ],
)
def test_ratings_are_written_as_in_the_data(
    ratings: list[float | None], written: list[str], ends: tuple[str, str], liked: list[str]
) -> None:
    corpus = make_corpus([[0, 1, 2, 3]], events=rate(ratings))
    places = np.arange(4)
    assert read("rating", "rating", corpus, places) == written
    assert read("rating", "lowest", corpus, places[:1]) == [ends[0]]
    assert read("rating", "highest", corpus, places[:1]) == [ends[1]]
    known = read_ratings(corpus)
    assert [text for text, good in zip(known.levels, known.liked, strict=True) if good] == liked
    says = read("rating", "opinion", corpus, places)
    expected = ["" if not text else "like" if text in liked else "dislike" for text in written]
    assert says == expected
    filled = TASKS["rating"].target_fields["rating"].find_filled(corpus, places)
    assert filled.tolist() == [bool(text) for text in written]


@pytest.mark.parametrize("events", [pl.DataFrame(), rate([5, 5, 5, 5]), rate([None] * 4)])
def test_without_ratings_or_with_one_for_all_everything_is_off(events: pl.DataFrame) -> None:
    corpus = make_corpus([[0, 1, 2, 3]], events=events)
    for task in ("rating", "rating-check", "rating-shots"):
        fields = {**TASKS[task].input_fields, **TASKS[task].target_fields}
        for name in ("rating", "opinion", "lowest", "highest", "asked_rating", "answer"):
            if name in fields:
                assert not fields[name].find_filled(corpus, np.arange(4)).any()
                assert fields[name].read(corpus, None, np.arange(4)) is not None
        for name in ("own_shots", "item_shots", "own_shots_titles", "item_shots_titles"):
            if name in fields:
                assert not fields[name].find_filled(corpus, np.arange(4)).any()
                assert fields[name].read(corpus, None, np.arange(4)) == [""] * 4


def test_every_choice_is_a_rating_row_and_its_past_ends_before_it() -> None:
    corpus = make_corpus([[0, 1, 2], [3, 4]])
    assert find_subjects("rating", corpus).tolist() == [0, 1, 2, 3, 4]
    assert find_subjects("rating", corpus, "history").tolist() == [1, 2, 4]
    assert find_subjects("rating", corpus, "history_titles").tolist() == [1, 2, 4]
    history = read("rating", "history", corpus, np.array([2, 4]))
    assert history == [f"{sid_of(0)}; {sid_of(1)}", sid_of(3)]
    assert read("rating", "sid", corpus, np.array([2])) == [sid_of(2)]
    assert read("rating", "user_id", corpus, np.array([4])) == ["u1"]
    assert read("rating", "user_sid", corpus, np.array([4])) == ["<ua_1><ub_0>"]
    users, items = TASKS["rating"].find_owners(corpus, np.array([2, 3]))
    assert (users.tolist(), items.tolist()) == ([0, 1], [2, 3])


def test_the_asked_rating_is_the_true_one_every_second_time() -> None:
    walks = make_walks(n_users=200)
    corpus = make_corpus(walks, events=make_events(1600))
    places = np.arange(1600)
    asked = read("rating-check", "asked_rating", corpus, places)
    answers = read("rating-check", "answer", corpus, places)
    true = read("rating", "rating", corpus, places)
    assert [a == t for a, t in zip(asked, true, strict=True)] == [a == "Yes" for a in answers]
    assert abs(answers.count("Yes") - 800) < 5 * np.sqrt(400)
    wrong = [int(a) for a, said in zip(asked, answers, strict=True) if said == "No"]
    counts = np.bincount(wrong, minlength=6)[1:]
    assert abs(counts - len(wrong) / 5).max() < 5 * np.sqrt(len(wrong) / 5)
    again = read("rating-check", "asked_rating", corpus.with_pass(3), places)
    assert again != asked


def test_own_examples_are_earlier_ones_of_the_same_user() -> None:
    walks = make_walks()
    events = make_events(96).with_columns(
        pl.when(pl.int_range(pl.len()) % 3 == 0)
        .then(None)
        .otherwise(pl.col("rating"))
        .alias("rating")
    )
    corpus = make_corpus(walks, events=events, shots=3)
    places = find_subjects("rating-shots", corpus, "own_shots")
    rated = events["rating"].is_not_null().to_numpy()
    owner = corpus.walks.owner
    assert places.tolist() == [
        place for place in range(96) if rated[(place // 8) * 8 : place].any()
    ]
    for place, row in zip(places, find_own_shots(corpus, places), strict=True):
        shown = row[row >= 0]
        assert (shown < place).all() and (owner[shown] == owner[place]).all()
        assert rated[shown].all() and (np.diff(shown) > 0).all()
        assert len(shown) == min(3, rated[(place // 8) * 8 : place].sum())
    place = np.array([7])
    row = find_own_shots(corpus, place)[0]
    level = [events["rating"][int(shot)] for shot in row]
    expected = "; ".join(
        f"{sid_of(walks[0][shot])} {r:g}" for shot, r in zip(row, level, strict=True)
    )
    text = read("rating-shots", "own_shots", corpus, place)
    assert text == [expected] and isinstance(text[0], SidText)
    titles = read("rating-shots", "own_shots_titles", corpus, place)[0]
    assert titles.split("; ")[0] == f"Lamp number {walks[0][row[0]]}: {level[0]:g}"


def brute_item_shots(corpus: Corpus, place: int) -> set[int]:
    walks, times = corpus.walks, corpus.event_numbers("timestamp")
    item, owner = walks.item_index[place], walks.owner[place]
    same = [p for p in range(len(walks.item_index)) if walks.item_index[p] == item]
    if sum(walks.owner[p] == owner for p in same) > 1:
        return set()
    return {p for p in same if walks.owner[p] != owner and times[p] < times[place]}


def test_others_examples_are_of_the_same_item_and_an_earlier_moment() -> None:
    walks = make_walks(n_items=12, length=8)
    walks[0] = [walks[0][0], *walks[0][:7]]  # a user who chose an item twice
    events = make_events(96)
    corpus = make_corpus(walks, n_items=12, events=events, shots=4)
    places = np.arange(96)
    field = TASKS["rating-shots"].input_fields["item_shots"]
    filled = field.find_filled(corpus, places)
    found = find_item_shots(corpus, places)
    assert filled.any() and not filled.all()
    for place in places:
        allowed = brute_item_shots(corpus, place)
        shown = [shot for shot in found[place].tolist() if shot >= 0]
        assert set(shown) <= allowed and len(set(shown)) == len(shown) == min(4, len(allowed))
        assert filled[place] == bool(allowed)
    place = int(np.flatnonzero(filled)[-1])
    shown = [shot for shot in found[place].tolist() if shot >= 0]
    text = read("rating-shots", "item_shots", corpus, np.array([place]))
    assert text == ["; ".join(f"{events['rating'][shot]:g}" for shot in shown)]
    titled = read("rating-shots", "item_shots_titles", corpus, np.array([place]))[0]
    assert titled.startswith(f"Opinion {shown[0]}: ")


def test_without_times_others_are_not_shown() -> None:
    corpus = make_corpus(make_walks(), events=make_events(96).drop("timestamp"))
    assert len(find_subjects("rating-shots", corpus, "item_shots")) == 0
    assert len(find_subjects("rating-shots", corpus, "own_shots")) > 0
    untitled = make_corpus(make_walks(), events=make_events(96).drop("review_title"))
    assert len(find_subjects("rating-shots", untitled, "item_shots_titles")) == 0
    assert len(find_subjects("rating-shots", untitled, "item_shots")) > 0

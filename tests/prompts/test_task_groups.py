"""Tasks of some items or users only: domains, languages, complements, weak users."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.prompts.corpus import Corpus
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.render import SidText
from genrec.prompts.tasks.all_tasks import TASKS
from genrec.prompts.tasks.complementary import FEWEST_PAIRS, find_followers
from genrec.prompts.tasks.locales import LANGUAGES

from .conftest import sid_of
from .rich_corpus import find_subjects, make_corpus, make_events, make_items, make_walks, read

MIXED = ("history_inside", "history_outside")


def places(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def join(*items: int) -> str:
    return "; ".join(sid_of(item) for item in items)


@pytest.fixture
def mixed() -> Corpus:
    """Even items are lamps, odd ones shoes, and items from 30 on have no domain."""
    names = [("Lamps", "Shoes")[item % 2] if item < 30 else None for item in range(40)]
    items = make_items(40).with_columns(domain=pl.Series(names))
    return make_corpus([[0, 1, 2, 3], [5, 7, 8], [4, 30, 6]], items=items)


def test_a_history_parts_into_the_targets_domain_and_the_rest(mixed: Corpus) -> None:
    subjects = find_subjects("domain-sequential", mixed, "domain")
    assert subjects.tolist() == [1, 2, 3, 5, 6, 9]  # item 30 at place 8 is of no domain
    assert read("domain-sequential", "domain", mixed, subjects) == [
        *("Shoes", "Lamps", "Shoes", "Shoes", "Lamps", "Lamps")
    ]
    inside = read("domain-sequential", "history_inside", mixed, subjects)
    outside = read("domain-sequential", "history_outside", mixed, subjects)
    assert inside == ["", join(0), join(1), join(5), "", join(4)]
    assert outside == [join(0), join(1), join(0, 2), "", join(5, 7), join(30)]
    assert all(isinstance(text, SidText) for text in (*inside, *outside))
    fields = TASKS["domain-sequential"].input_fields
    for name, texts in zip(MIXED, (inside, outside), strict=True):
        assert fields[name].find_filled(mixed, subjects).tolist() == [bool(t) for t in texts]
    titles = read("domain-sequential", "history_titles_outside", mixed, subjects)
    assert titles[2] == "Lamp number 0; Lamp number 2"
    assert not fields["history_titles_inside"].trusted


def test_domains_are_told_in_the_order_of_the_history(mixed: Corpus) -> None:
    subjects = find_subjects("next-domain", mixed, "domain", "history_domains")
    told = read("next-domain", "history_domains", mixed, subjects)
    assert told[2] == "Lamps, Shoes, Lamps"
    assert told[-1] == "Lamps, other"
    assert read("next-domain", "domain", mixed, subjects)[:2] == ["Shoes", "Lamps"]
    assert read("domain-sequential", "sid", mixed, subjects)[0] == sid_of(1)


def test_only_the_shown_history_is_parted(mixed: Corpus) -> None:
    short = make_corpus([[0, 1, 3, 5, 7, 9, 2]], items=mixed.items)
    fields = TASKS["domain-sequential"].input_fields
    # Five items are shown: the one lamp, at the very beginning, is not.
    assert read("domain-sequential", "history_inside", short, places(6)) == [""]
    assert fields["history_inside"].find_filled(short, places(5, 6)).tolist() == [True, False]


def test_without_domains_all_is_off() -> None:
    corpus = make_corpus([[0, 1, 2]])
    assert not len(find_subjects("domain-sequential", corpus, "domain"))
    assert not len(find_subjects("next-domain", corpus, "history_domains"))


def test_each_language_has_the_items_of_its_shops() -> None:
    shops = ["UK", "de-AT", "JP", "es_MX", "fr", "IT", "US", "DE", "PL", None]
    items = make_items(10).with_columns(locale=pl.Series(shops))
    corpus = make_corpus([[9, 0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 9]], n_items=10, items=items)
    found = {
        name: corpus.walks.item_index[find_subjects("next-title", corpus, f"title_{name}")].tolist()
        for name in LANGUAGES
    }
    assert found == {"en": [0, 6], "de": [1, 7], "ja": [2], "es": [3], "fr": [4], "it": [5]}
    for name in LANGUAGES:
        subjects = find_subjects("next-in-locale", corpus, f"sid_{name}", "locale")
        assert corpus.walks.item_index[subjects].tolist() == found[name]
    assert read("next-in-locale", "locale", corpus, places(2)) == ["de-AT"]
    assert read("next-in-locale", "sid_de", corpus, places(2)) == [sid_of(1)]
    assert read("next-title", "title_de", corpus, places(2)) == ["Lamp number 1"]
    assert len(find_subjects("next-title", corpus, "title")) == 10
    assert TASKS["next-in-locale"].target_fields["sid_de"].trusted


def test_without_locales_only_the_neutral_wordings_are_on() -> None:
    corpus = make_corpus([[0, 1, 2]])
    assert len(find_subjects("next-title", corpus, "title")) == 2
    for name in LANGUAGES:
        assert not len(find_subjects("next-title", corpus, f"title_{name}"))
        assert not len(find_subjects("next-in-locale", corpus, f"sid_{name}"))


def test_the_most_frequent_follower_is_the_complement() -> None:
    walks = [[0, 1, 2, 2]] * FEWEST_PAIRS + [[0, 3]] * (FEWEST_PAIRS + 1) + [[4, 5]] * 2
    corpus = make_corpus(walks)
    followers = find_followers(corpus)
    # 0 -> 3 is more frequent than 0 -> 1; 2 -> 2 is no pair, nor is the step into the next walk.
    assert followers[:6].tolist() == [3, 2, -1, -1, -1, -1]
    subjects = find_subjects("complementary", corpus)
    assert subjects.tolist() == [0, 1]
    assert read("complementary", "item", corpus, subjects) == [sid_of(0), sid_of(1)]
    assert read("complementary", "item_title", corpus, subjects)[0] == "Lamp number 0"
    assert read("complementary", "sid", corpus, subjects) == [sid_of(3), sid_of(2)]
    assert read("complementary", "title", corpus, subjects)[0] == "Lamp number 3"
    users, items = TASKS["complementary"].find_owners(corpus, subjects)
    assert (users.tolist(), items.tolist()) == ([-1, -1], [3, 2])


def test_equal_followers_and_none() -> None:
    tied = make_corpus([[0, 7]] * FEWEST_PAIRS + [[0, 2]] * FEWEST_PAIRS)
    assert find_followers(tied)[0] == 2
    assert not len(find_subjects("complementary", make_corpus([[0, 1], [1, 0]])))
    assert not len(find_subjects("complementary", make_corpus([[]])))


def test_weak_users_have_few_training_items() -> None:
    corpus = make_corpus([[0, 1], [2, 3, 4], [5, 6, 7, 8]], weak_history=3)
    assert find_subjects("weak-user", corpus).tolist() == [1, 3, 4]
    assert TASKS["weak-user"].find_subjects(corpus, PromptsRecipe(weak_history=2)).tolist() == [1]
    users, items = TASKS["weak-user"].find_owners(corpus, places(1, 4))
    assert (users.tolist(), items.tolist()) == ([0, 1], [1, 4])


def test_weak_users_are_told_with_their_ratings() -> None:
    events = make_events(5).with_columns(rating=pl.Series([5.0, 2.0, None, 4.5, 1.0]))
    corpus = make_corpus([[0, 1, 2, 3, 4]], events=events)
    assert read("weak-user", "history_rated_titles", corpus, places(3)) == [
        "Lamp number 0 (5); Lamp number 1 (2); Lamp number 2"
    ]
    assert read("weak-user", "history_liked", corpus, places(3, 4)) == [join(0), join(0, 3)]
    assert read("weak-user", "history_rated_low", corpus, places(1, 4)) == ["", join(1)]
    fields = TASKS["weak-user"].input_fields
    assert fields["history_rated_low"].find_filled(corpus, places(1, 4)).tolist() == [False, True]
    assert fields["history_liked"].trusted
    # The rating of the target itself is told nowhere.
    assert "4.5" not in read("weak-user", "history_rated_titles", corpus, places(3))[0]


def test_without_ratings_weak_users_have_titles_only() -> None:
    corpus = make_corpus(make_walks(4, 4), events=pl.DataFrame())
    for name in ("history_rated_titles", "history_liked", "history_rated_low"):
        assert not len(find_subjects("weak-user", corpus, name)), name
    assert len(find_subjects("weak-user", corpus, "history_titles"))

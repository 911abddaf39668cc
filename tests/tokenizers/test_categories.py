from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from genrec.tokenizers.measures import categories as module
from genrec.tokenizers.measures.categories import (
    Categories,
    find_dominant,
    find_leaf,
    find_root,
    measure_categories,
    measure_purity,
    split_paths,
)
from genrec.tokenizers.measures.popularity import measure_groups, measure_popularity


def test_paths_have_arrows_or_commas() -> None:
    assert split_paths(["A > B, C > D", "", "A"]) == [("A", "B, C", "D"), (), ("A",)]
    assert split_paths(["A,B, C,D", "A & B"]) == [("A", "B, C", "D"), ("A & B",)]
    assert split_paths([" > ", ",,"]) == [(), (",,",)]


def test_the_root_is_where_items_begin_to_differ() -> None:
    paths = [("Shop", "Hair", "x"), ("Shop", "Skin"), ("Shop", "Skin", "y"), (), ("Shop",)]
    root = find_root(paths)
    assert root is not None
    assert (root.depth, root.names) == (2, ("Skin", "Hair"))
    assert root.rows.tolist() == [0, 1, 2]
    assert root.labels.tolist() == [1, 0, 0]


def test_a_step_that_nearly_all_share_is_passed_over() -> None:
    paths = [("Shop", kind) for kind in "ab" * 10] + [("Other", "c")]
    root = find_root(paths)
    assert root is not None
    assert root.depth == 2
    only = find_root([("Shop",)] * 20 + [("Other",)])
    assert only is not None
    assert only.depth == 1


def test_names_under_different_parents_stay_apart() -> None:
    root = find_root([("S", "a"), ("T", "a"), ("S", "a"), ("T", "b")])
    assert root is not None
    assert root.depth == 1
    leaf = find_leaf([("S", "a"), ("T", "a")])
    assert leaf is not None
    assert leaf.names == ("S > a", "T > a")


@pytest.mark.parametrize("paths", [[], [(), ()], [("a",), ("a",)]])
def test_one_category_is_none(paths: list[tuple[str, ...]]) -> None:
    assert find_root(paths) is None
    assert find_leaf(paths) is None


def test_purity_by_hand() -> None:
    group, labels = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    assert measure_purity(group, labels) == 0.8


def test_the_commonest_label_of_each_group() -> None:
    label, count = find_dominant(np.array([0, 0, 2, 2, 2]), np.array([1, 0, 1, 1, 0]))
    assert label.tolist() == [0, -1, 1]
    assert count.tolist() == [1, 0, 2]


def make_case(n_items: int = 300) -> tuple[np.ndarray, Categories]:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=n_items)
    first = np.where(rng.random(n_items) < 0.8, labels, rng.integers(4, size=n_items))
    codes = np.stack([first, rng.integers(5, size=n_items)], axis=1).astype(np.int32)
    rows = np.arange(n_items)[: n_items - 10]
    return codes, Categories(1, tuple("abcd"), rows, labels[rows])


def test_information_agrees_with_scikit_learn() -> None:
    codes, known = make_case()
    measured = measure_categories(codes, known)
    shown = codes[known.rows]
    pairs = shown[:, 0] * 5 + shown[:, 1]
    for row, group in ((measured["prefixes"][0], shown[:, 0]), (measured["prefixes"][1], pairs)):
        assert row["nmi"] == pytest.approx(normalized_mutual_info_score(known.labels, group))
        assert row["ami"] == pytest.approx(adjusted_mutual_info_score(known.labels, group))
    last = measured["levels"][1]
    assert last["ami"] == pytest.approx(adjusted_mutual_info_score(known.labels, shown[:, 1]))
    assert measured["items"] == 290
    assert measured["categories"] == 4


def test_shuffled_categories_show_what_chance_gives() -> None:
    codes, known = make_case()
    alone = np.arange(300, dtype=np.int32)[:, None]
    row = measure_categories(alone, known)["prefixes"][0]
    assert row["purity"] == row["purity_chance"] == 1.0
    assert row["ami"] == pytest.approx(0.0, abs=1e-9)
    first = measure_categories(codes, known)["prefixes"][0]
    assert first["purity"] > 0.7
    assert first["purity_chance"] < 0.5


def test_codes_that_are_the_categories_are_perfect() -> None:
    _, known = make_case()
    codes = np.zeros((300, 1), dtype=np.int32)
    codes[known.rows, 0] = known.labels
    row = measure_categories(codes, known)["prefixes"][0]
    assert (row["purity"], row["nmi"], row["ami"]) == (1.0, pytest.approx(1), pytest.approx(1))


def test_very_many_items_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 100)
    codes, known = make_case()
    measured = measure_categories(codes, known, seed=1)
    assert measured["items"] == 100
    assert measured == measure_categories(codes, known, seed=1)


def test_popularity_by_hand() -> None:
    codes = np.array([[0], [0], [3], [3], [3], [5]], dtype=np.int32)
    measured = measure_popularity(codes, np.array([1, 1, 2, 2, 2, 8]))
    assert measured["interactions"] == 16
    assert measured["largest_share"] == 0.5
    assert measured["gini"] == pytest.approx(24 / 9 / (2 * 16 / 3))
    # Sizes 2, 3, 1; choices an item 1, 2, 8.
    assert measured["size_correlation"] == pytest.approx(-0.5)


def test_nobody_chose_anything() -> None:
    measured = measure_popularity(np.array([[0], [1]], dtype=np.int32), np.zeros(2, dtype=int))
    assert measured["gini"] == measured["largest_share"] == 0.0
    assert measured["size_correlation"] is None


def test_group_sizes_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0]], dtype=np.int32)
    first, both = measure_groups(codes)
    assert (first["groups"], first["mean"], first["largest"]) == (2, 2.0, 3)
    assert (first["alone_share"], first["item_mean"]) == (0.25, 2.5)
    assert (both["groups"], both["median"], both["item_mean"]) == (3, 1.0, 1.5)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import ArpackNoConvergence

from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import DataError
from genrec.tokenizers.quantizers import collaborative
from genrec.tokenizers.quantizers.collaborative import build_graph, make_collaborative, split_graph
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sections import CollaborativeSection

from .made_data import draw_choices, make_given, write_data


def build_recipe(**values: object) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate({"quantizer": "collaborative", "collaborative": values})


def chain_items(n_items: int) -> csr_matrix:
    """A graph in which each item goes with the next."""
    return build_graph([np.array([row, row + 1]) for row in range(n_items - 1)], n_items)


def test_edges_count_the_users_who_chose_both() -> None:
    graph = build_graph([np.array([0, 1, 1]), np.array([1, 0]), np.array([2])], 4)
    assert graph.toarray().tolist() == [[0, 2, 0, 0], [2, 0, 0, 0], [0] * 4, [0] * 4]
    assert build_graph([], 2).nnz == 0


def test_every_item_is_in_one_small_leaf() -> None:
    values = CollaborativeSection(clusters=3, max_items=5)
    leaves = split_graph(chain_items(60), values, seed=0)
    items = np.concatenate([leaf.items for leaf in leaves])
    assert sorted(items.tolist()) == list(range(60))
    assert max(len(leaf.items) for leaf in leaves) <= 5
    assert len({leaf.path for leaf in leaves}) == len(leaves)


def test_users_tastes_become_first_codes(tmp_path: Path) -> None:
    group = [row % 3 for row in range(90)]
    given = make_given(write_data(tmp_path / "data", 90, draw_choices(group, 200)))
    found = make_collaborative(build_recipe(clusters=3, max_items=10), 0)
    found.fit(given)
    codes = found.encode(given)
    assert all(len(set(codes[k::3, 0].tolist())) == 1 for k in range(3))
    assert len(set(codes[:3, 0].tolist())) == 3
    assert codes[:, -1].max() < 10
    assert len(np.unique(codes, axis=0)) == 90


def test_held_out_choices_are_not_looked_at(tmp_path: Path) -> None:
    train = draw_choices([row % 2 for row in range(20)], 40)
    leaked = [(user, item, split) for user, item, split in train if split == "train"]
    leaked += [(user, (item + 1) % 20, "test") for user, item, split in train if split == "test"]
    codes = []
    for name, choices in (("a", train), ("b", leaked)):
        given = make_given(write_data(tmp_path / name, 20, choices))
        found = make_collaborative(build_recipe(clusters=2, max_items=4), 0)
        found.fit(given)
        codes.append(found.encode(given))
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("choices", [[], [(0, 0, "train"), (0, 1, "train")]])
def test_items_that_nobody_chose_have_ids_too(
    tmp_path: Path, choices: list[tuple[int, int, str]]
) -> None:
    given = make_given(write_data(tmp_path / "data", 30, choices))
    found = make_collaborative(build_recipe(clusters=4, max_items=3), 0)
    found.fit(given)
    codes = found.encode(given)
    assert len(np.unique(codes, axis=0)) == 30
    assert (codes < np.array(found.codebook_sizes)).all()


def test_a_large_graph_is_split_without_a_dense_matrix(tmp_path: Path) -> None:
    make_data(DataRecipe(source="synthetic", n_items=700, n_users=900), tmp_path / "data")
    given = make_given(tmp_path / "data")
    codes = []
    for _ in range(2):
        found = make_collaborative(build_recipe(clusters=12, max_items=50), 0)
        found.fit(given)
        codes.append(found.encode(given))
    np.testing.assert_array_equal(*codes)
    assert len(np.unique(codes[0], axis=0)) == 700
    assert len(np.unique(codes[0][:, 0])) >= 8


def test_a_graph_without_eigenvectors_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArpackNoConvergence("none", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(collaborative, "eigsh", fail)
    with pytest.raises(DataError, match=r"of 500 items has no eigen.*lower collaborative\.clus"):
        split_graph(chain_items(500), CollaborativeSection(clusters=3, max_items=5), seed=0)


def test_too_deep_a_tree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halve(_: object, items: np.ndarray, *__: object) -> list[np.ndarray]:
        return [items[:1], items[1:]]

    monkeypatch.setattr(collaborative, "_split_items", halve)
    given = make_given(write_data(tmp_path / "data", 40))
    with pytest.raises(DataError, match=r"40 levels, but there are 26.*max_items \(now 1\)"):
        make_collaborative(build_recipe(clusters=2, max_items=1), 0).fit(given)


def test_new_items_are_refused(tmp_path: Path) -> None:
    given = make_given(write_data(tmp_path / "data", 5))
    found = make_collaborative(build_recipe(), 0)
    found.fit(given)
    with pytest.raises(DataError, match="nobody has chosen 2 new items yet; fit again"):
        found.extend_codes(2, found.encode(given))


@pytest.mark.slow
def test_real_tastes_are_found_quickly(
    find_real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = find_real_data("amazon14-beauty")
    make_data(DataRecipe(source="table", path=str(folder), reviews=False), tmp_path / "data")
    given = make_given(tmp_path / "data")
    found = make_collaborative(build_recipe(), 0)
    found.fit(given)
    codes = found.encode(given)
    same = [
        (codes[history[:-1], 0] == codes[history[1:], 0]).mean() for history in given.histories()
    ]
    share = np.bincount(codes[:, 0]) / len(codes)
    assert np.mean(same) > 2 * float((share**2).sum()), "neighbours share a cluster beyond chance"

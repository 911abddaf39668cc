from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genrec.data.dataset import load_dataset
from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.embedding.embed import make_embeddings
from genrec.tokenizers.inputs import DATA, VECTORS, FitInput, read_input
from genrec.tokenizers.recipe import EmbedRecipe

from .conftest import plant_clusters


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inputs") / "data"
    make_data(DataRecipe(source="synthetic", n_items=60, n_users=30), out)
    return out


@pytest.fixture(scope="module")
def embeddings(data: Path) -> Path:
    out = data.parent / "embeddings"
    make_embeddings(EmbedRecipe.model_validate({"lsa": {"dimensions": 8}}), data, out)
    return out


def test_both_inputs_are_read_together(data: Path, embeddings: Path) -> None:
    given = read_input({VECTORS, DATA}, embeddings, data, who="letter")
    dataset = load_dataset(data)
    assert given.item_ids == dataset.item_ids
    assert (given.n_items, given.dimensions, given.subject) == (60, 8, "items")
    assert given.titles == tuple(dataset.items["title"])
    assert set(given.artifacts) == {"embed", "data"}
    train = dataset.sequences(("train",))
    assert sum(map(len, given.histories())) == len(train.item_index)
    assert sum(map(len, given.histories(("train", "test")))) > len(train.item_index)


def test_either_input_alone_names_the_items(data: Path, embeddings: Path) -> None:
    assert read_input({VECTORS}, embeddings, None, who="rqvae").dataset is None
    only_data = read_input(set(), None, data, who="random")
    assert (only_data.n_items, only_data.dimensions, only_data.vectors) == (60, 0, None)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({VECTORS}, r"quantizer 'x' needs --embeddings \(output of `genrec embed`\)$"),
        ({VECTORS, DATA}, r"needs --embeddings .* and --data \(output of `genrec data`\)"),
        (set(), "needs --data or --embeddings, to know the items"),
    ],
)
def test_a_missing_input_is_named(needs: set[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_input(needs, None, None, who="x")


def test_inputs_of_different_catalogues_are_refused(embeddings: Path, tmp_path: Path) -> None:
    make_data(DataRecipe(source="synthetic", n_items=70, n_users=30), tmp_path / "data")
    with pytest.raises(ArtifactError, match=r"holds 60 items, which are not those of .* both from"):
        read_input({VECTORS}, embeddings, tmp_path / "data", who="gmc")


def test_a_column_that_is_not_there_is_named(data: Path) -> None:
    given = read_input({DATA}, None, data, who="gmc")
    with pytest.raises(DataError, match=r"have no column 'domain'; they have .*item_id.*title"):
        given.read_column("domain")


def test_some_items_keep_their_vectors_and_columns(data: Path, embeddings: Path) -> None:
    given = read_input({VECTORS, DATA}, embeddings, data, who="letter")
    part = given.select_items(np.array([7, 3, 5])).select_items(np.array([2, 0]))
    assert part.item_ids == (given.item_ids[5], given.item_ids[7])
    assert part.titles == (given.titles[5], given.titles[7])
    np.testing.assert_array_equal(part.rows[:], given.rows[:][[5, 7]])


def test_vectors_in_memory_need_no_artefact() -> None:
    given = FitInput(("a", "b"), plant_clusters(2))
    assert given.dimensions == 16
    np.testing.assert_array_equal(given.select_items(np.array([1])).rows[:], given.rows[:][[1]])


def test_users_have_neither_titles_nor_choosers(data: Path) -> None:
    dataset = load_dataset(data)
    users = FitInput(tuple(dataset.users["user_id"]), dataset=dataset, subject="users")
    with pytest.raises(DataError, match="hold users, but the items' column 'title' says"):
        users.read_column("title")
    with pytest.raises(DataError, match=r"hold users, but who chose which item .*; give embed"):
        users.histories()

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, DataError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.imported import Imported
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_import import estimate_codebooks, export_index, import_index
from genrec.tokenizers.sharing.peer_index import read_index
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.tokenizer_files import Fitted

from .conftest import plant_clusters
from .made_report import N_ITEMS, name_items, plant_codes, write_index_file, write_vectors


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """An index in which item 6 has the codes of item 0, and item 7 those of item 1."""
    codes = plant_codes()
    codes[[6, 7]] = codes[[0, 1]]
    return write_index_file(tmp_path / "peer.index.json", codes)


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    return write_vectors(tmp_path / "embeddings", plant_clusters(N_ITEMS, 6))


def test_a_round_trip_is_the_same(tmp_path: Path) -> None:
    path = write_index_file(tmp_path / "index.json", plant_codes())
    artifact = import_index(path, tmp_path / "tokenizer")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.codes.tolist() == plant_codes().tolist()
    assert tokenizer.recipe.quantizer == "imported"
    assert tokenizer.recipe.options["source"] == "index.json"
    assert artifact.manifest.step == "tokenize"
    assert artifact.manifest.facts["collision_rate"] == {"before": 0.0, "after": 0.0}
    export_index(tokenizer, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())
    again = import_index(tmp_path / "again.json", tmp_path / "second")
    assert again.manifest.facts == artifact.manifest.facts


def test_the_same_file_makes_the_same_artefact(tmp_path: Path, shared: Path) -> None:
    digests = {
        import_index(shared, tmp_path / name, unique="suffix").manifest.digest for name in "ab"
    }
    assert len(digests) == 1


def test_shared_codes_are_refused_with_a_way_out(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 120 items .* --unique suffix .* --unique assign"):
        import_index(shared, tmp_path / "out")
    with pytest.raises(DataError, match="takes their vectors; name them with --embeddings"):
        import_index(shared, tmp_path / "out", unique="assign")
    assert not (tmp_path / "out").exists()


def test_a_suffix_leaves_all_other_codes(tmp_path: Path, shared: Path) -> None:
    import_index(shared, tmp_path / "out", unique="suffix")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    index = read_index(shared)
    assert tokenizer.codes[:, :2].tolist() == index.codes.tolist()
    assert np.flatnonzero(tokenizer.codes[:, 2]).tolist() == [6, 7]
    assert tokenizer.codebook_sizes == (*index.codebook_sizes, 2)
    assert tokenizer.raw_codes is not None
    assert tokenizer.raw_codes.tolist() == index.codes.tolist()


@pytest.mark.parametrize("unique", ["assign", "sinkhorn"])
def test_items_move_on_the_last_level_only(
    tmp_path: Path, shared: Path, embeddings: Path, unique: str
) -> None:
    import_index(shared, tmp_path / "out", unique=unique, embeddings=embeddings)
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    before = read_index(shared).codes
    changed = np.flatnonzero((tokenizer.codes != before).any(axis=1))
    assert len(changed) == 2
    assert set(changed) <= {0, 1, 6, 7}
    assert tokenizer.codes[:, 0].tolist() == before[:, 0].tolist()
    assert tokenizer.quality is not None
    assert tokenizer.quality["moved"]["items"] == 2
    assert load_artifact(tmp_path / "out").manifest.inputs["embed"]["path"] == str(embeddings)


def test_unique_codes_need_no_vectors_whatever_the_policy(tmp_path: Path) -> None:
    path = write_index_file(tmp_path / "index.json", plant_codes())
    import_index(path, tmp_path / "out", unique="assign")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.codes.tolist() == plant_codes().tolist()


def test_items_come_in_the_order_of_the_embeddings(tmp_path: Path, embeddings: Path) -> None:
    backwards = write_index_file(tmp_path / "index.json", plant_codes()[::-1], name_items()[::-1])
    import_index(backwards, tmp_path / "out", embeddings=embeddings)
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.item_ids == tuple(name_items())
    assert tokenizer.codes.tolist() == plant_codes().tolist()


def test_other_items_than_the_embeddings_are_all_named(tmp_path: Path, embeddings: Path) -> None:
    ids = [*name_items()[:-1], "stranger"]
    path = write_index_file(tmp_path / "index.json", plant_codes(), ids)
    with pytest.raises(DataError, match="hold different items") as caught:
        import_index(path, tmp_path / "out", embeddings=embeddings)
    assert "'item-119' has a vector, but no codes" in str(caught.value)
    assert "'stranger' has codes, but no vector" in str(caught.value)


def test_codebooks_are_means_of_what_is_left_over(tmp_path: Path) -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)
    index = read_index(write_index_file(tmp_path / "index.json", codes))
    vectors = np.array([[9.0, 1], [9, -1], [-9, 1], [-9, -1]], dtype=np.float32)
    first, second = estimate_codebooks(vectors, index)
    assert first.tolist() == [[9, 0], [-9, 0]]
    assert second.tolist() == [[0, 1], [0, -1]]
    gap = write_index_file(tmp_path / "gap.json", codes * 2)
    assert estimate_codebooks(vectors, read_index(gap))[0][1].tolist() == [0, 0]


def test_users_stay_users(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"u1": ["<ua_0>"], "u2": ["<ua_1>"]}')
    artifact = import_index(path, tmp_path / "out")
    tokenizer = SemanticIdTokenizer.from_pretrained(artifact.path)
    assert tokenizer.sids == ("<ua_0>", "<ua_1>")
    export_index(tokenizer, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_there_is_no_quantizer(tmp_path: Path) -> None:
    path = write_index_file(tmp_path / "index.json", plant_codes())
    import_index(path, tmp_path / "out")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    with pytest.raises(DataError, match="codes of quantizer 'imported' do not come from vectors"):
        tokenizer.quantize(np.ones((1, 4), dtype=np.float32))
    quantizer = tokenizer.quantizer
    assert isinstance(quantizer, Imported)
    assert quantizer.codebooks == ()
    assert quantizer.codebook_sizes == (8, 32)
    given = FitInput(("x",), np.ones((1, 4), dtype=np.float32))
    for refuse in (quantizer.encode, quantizer.project):
        with pytest.raises(DataError, match=r"imported from index\.json.* 1 items cannot be"):
            refuse(given)
    with pytest.raises(DataError, match="120 code sequences cannot be turned"):
        quantizer.decode_codes(tokenizer.codes)
    assert quantizer.list_weights() == {}
    with pytest.raises(ArtifactError, match="has no weights"):
        quantizer.restore_weights({"centres": np.zeros(1)})


def test_imported_is_not_fitted() -> None:
    recipe = TokenizeRecipe(quantizer="imported", codebook_sizes=(8, 8))
    given = FitInput(("x",), np.ones((1, 4), dtype=np.float32))
    with pytest.raises(DataError, match="genrec tokenize import"):
        fit_tokenizer(recipe, given)


def test_words_and_folders_are_not_exported(tmp_path: Path) -> None:
    fitted = Fitted(TokenizeRecipe(quantizer="imported", codebook_sizes=(2,)), {}, 0, (2,))
    codes = np.array([[0], [1]], dtype=np.int32)
    words = SemanticIdTokenizer(["x", "y"], codes, fitted, sids=["red", "blue"])
    with pytest.raises(DataError, match="are words, not tokens"):
        export_index(words, tmp_path / "index.json")
    spelled = SemanticIdTokenizer(["x", "y"], codes, fitted)
    with pytest.raises(DataError, match="is a directory"):
        export_index(spelled, tmp_path)

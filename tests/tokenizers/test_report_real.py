"""Peers' published vocabularies, measured as their authors and others counted them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.tokenizers.embedding.embed import make_embeddings
from genrec.tokenizers.measures.report import make_report
from genrec.tokenizers.recipe import EmbedRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.peer_import import export_index, import_index

pytestmark = pytest.mark.slow

# Folder, file, distinct of all, largest group, codes used, perplexity: ../shared/data's SOURCE.md.
PUBLISHED = [
    ("amazon14-beauty", "letter", 12_088, 12_101, 3, [197, 256, 256, 256],
     [82.7, 248.6, 247.6, 246.6]),
    ("amazon14-beauty", "rkmeans", 10_527, 12_101, 18, [256, 256, 256, 256],
     [194.0, 89.8, 72.4, 48.2]),
    ("amazon14-beauty", "rqvae", 11_499, 12_101, 12, [131, 256, 256, 256],
     [106.9, 237.0, 231.2, 223.6]),
    ("amazon18-games", "lcrec", 16_717, 16_859, 6, [208, 256, 256, 256],
     [170.3, 242.6, 241.6, 243.0]),
    ("amazon18-scientific", "collision", 3_790, 4_344, 22, [32, 256, 256, 256],
     [29.1, 238.6, 212.1, 211.9]),
]  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: f"{row[0]}-{row[1]}")
def test_counts_agree_with_the_published_ones(
    find_real_data: Callable[[str], Path], tmp_path: Path, published: tuple[Any, ...]
) -> None:
    folder, name, distinct, items, largest, used, perplexity = published
    path = find_real_data(folder) / f"peer_index_{name}.json"
    [row] = make_report([path], tmp_path / "out")["vocabularies"]
    assert row["items"] == items
    assert row["collisions"]["lost"] == items - distinct
    assert row["collisions"]["after"] == pytest.approx(1 - distinct / items)
    assert row["collisions"]["largest"] == largest
    levels = row["use"]["levels"]
    assert [level["used"] for level in levels] == used
    assert [level["perplexity"] for level in levels] == pytest.approx(perplexity, abs=0.051)


@pytest.fixture(scope="module")
def beauty(
    find_real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, source = tmp_path_factory.mktemp("beauty"), find_real_data("amazon14-beauty")
    recipe: dict[str, Any] = {
        "source": "table", "path": str(source), "text_fields": ["title", "brand", "categories"],
    }  # fmt: skip
    make_data(DataRecipe.model_validate(recipe), folder / "data")
    make_embeddings(EmbedRecipe(), folder / "data", folder / "embeddings", cache=folder / "cache")
    return {"data": folder / "data", "embeddings": folder / "embeddings"}


def test_peers_codes_belong_to_the_items_that_we_give_them(
    find_real_data: Callable[[str], Path], beauty: dict[str, Path], tmp_path: Path
) -> None:
    report = make_report([find_real_data("amazon14-beauty")], tmp_path / "out", **beauty)
    names = [row["name"] for row in report["vocabularies"]]
    assert names == ["peer_index_letter", "peer_index_rkmeans", "peer_index_rqvae"]
    for row in report["vocabularies"]:
        near = row["neighbours"]["prefixes"]
        assert near[0]["agreement"] > 0.3, "items mapped wrongly would be near 0"
        assert near[0]["recall"] > 5 * near[0]["chance"]
        assert row["neighbours"]["rank_correlation"] > 0.4
        root = row["categories"]["root"]
        assert (root["categories"], root["depth"]) == (6, 2)
        assert root["prefixes"][0]["ami"] > 0.3
        assert row["popularity"]["interactions"] == 153_776
    assert report["measures"][0]["key"] == "collisions_after"
    assert report["measures"][0]["best"] == ["peer_index_letter"]


@pytest.mark.parametrize("unique", ["assign", "suffix"])
def test_a_peers_vocabulary_becomes_ours(
    find_real_data: Callable[[str], Path], beauty: dict[str, Path], tmp_path: Path, unique: str
) -> None:
    path = find_real_data("amazon14-beauty") / "peer_index_rkmeans.json"
    import_index(path, tmp_path / "own", unique=unique, embeddings=beauty["embeddings"])
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "own")
    assert len(set(tokenizer.sids)) == 12_101
    assert tokenizer.quality is not None
    assert tokenizer.quality["collision_rate"]["before"] == pytest.approx(0.13007, abs=1e-5)
    moved = tokenizer.quality["moved"]["items"]
    assert moved == (1_574 if unique == "assign" else 0)
    export_index(tokenizer, tmp_path / "index.json")
    import_index(tmp_path / "index.json", tmp_path / "again")
    again = SemanticIdTokenizer.from_pretrained(tmp_path / "again")
    assert dict(zip(again.item_ids, again.sids, strict=True)) == dict(
        zip(tokenizer.item_ids, tokenizer.sids, strict=True)
    )

"""Small catalogues, planted clusters and a tiny text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.artifact import write_artifact
from genrec.recipe import Recipe
from genrec.types import FloatArray

KINDS = ("red lipstick", "night cream", "hair brush", "nail polish", "bath soap", "sun lotion")


def plant_clusters(
    n_items: int, n_clusters: int = 8, dimensions: int = 16, noise: float = 0.1, seed: int = 0
) -> FloatArray:
    """Points around well separated centres; item i belongs to cluster i % n_clusters."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n_clusters, dimensions))
    points = centres[np.arange(n_items) % n_clusters]
    return (points + noise * generator.normal(size=points.shape)).astype(np.float32)


def write_items(out: Path, texts: Sequence[str | None]) -> Path:
    """A data artefact with the columns that `embed` reads."""
    with write_artifact(out, step="data", recipe=Recipe()) as work:
        pl.DataFrame(
            {"item_id": [f"item-{row}" for row in range(len(texts))], "text": texts},
            schema={"item_id": pl.String, "text": pl.String},
        ).write_parquet(work.path / "items.parquet")
    return out


@pytest.fixture
def texts() -> list[str]:
    return [f"{KINDS[row % len(KINDS)]} number {row} brand {row % 5}" for row in range(60)]


@pytest.fixture
def make_catalogue(tmp_path: Path) -> Callable[..., Path]:
    def make(texts: Sequence[str | None], name: str = "data") -> Path:
        return write_items(tmp_path / name, texts)

    return make


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with random weights, 16 wide."""
    torch = pytest.importorskip("torch")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "bert")
    transformer = modules.Transformer(str(folder / "bert"), max_seq_length=64)
    model = SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"

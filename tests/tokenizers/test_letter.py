from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from genrec.errors import DataError
from genrec.tokenizers.inputs import DATA, VECTORS, FitInput, read_input
from genrec.tokenizers.quantizers.item_factors import factorise_interactions
from genrec.tokenizers.quantizers.letter import (
    AlignmentLoss,
    DiversityLoss,
    find_letter_needs,
    group_codes,
    make_letter_losses,
)
from genrec.tokenizers.quantizers.losses import TrainBatch
from genrec.tokenizers.quantizers.quantizer import build_quantizer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.types import FloatArray

from .conftest import plant_clusters
from .made_data import draw_choices, make_given, write_data

QUICK = {
    "hidden_sizes": [24], "latent_size": 8, "max_epochs": 20, "warmup_epochs": 4,
    "codebook_update": "gradient",
}  # fmt: skip

SCHEDULE = {"max_epochs": 25, "batch_size": 32, "learning_rate": 0.005}


def make_recipe(letter: dict[str, Any] | None = None, **rqvae: Any) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate(
        {"quantizer": "letter", "codebook_sizes": [8, 8, 8], "letter": letter or {},
         "rqvae": {**QUICK, **rqvae}}
    )  # fmt: skip


def make_batch(quantized: Tensor, rows: list[int], codes: Tensor | None = None,
               books: list[Tensor] | None = None) -> TrainBatch:  # fmt: skip
    codes = torch.zeros(len(rows), 0, dtype=torch.int64) if codes is None else codes
    return TrainBatch(torch.tensor(rows), quantized, quantized, codes, books or [])


def test_alignment_is_the_batch_cross_entropy() -> None:
    factors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    scaled = torch.from_numpy(factors / np.linalg.norm(factors, axis=1).mean())
    quantized = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss = AlignmentLoss(factors, 3, weight=0.5).measure(make_batch(quantized, [4, 0, 2]))
    by_hand = [
        -torch.log_softmax(torch.stack([row @ scaled[j] for j in (4, 0, 2)]), 0)[place]
        for place, row in enumerate(quantized)
    ]
    torch.testing.assert_close(loss, 0.5 * torch.stack(by_hand).mean())


def test_items_without_factors_are_left_out() -> None:
    factors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    factors[1] = np.nan
    loss = AlignmentLoss(factors, 3, weight=1.0)
    quantized = torch.randn(3, 3, requires_grad=True)
    with_unknown = loss.measure(make_batch(quantized, [0, 1, 2]))
    torch.autograd.backward(with_unknown)
    without = loss.measure(make_batch(quantized[[0, 2]], [0, 2]))
    torch.testing.assert_close(with_unknown, without)
    assert quantized.grad is not None
    assert (quantized.grad[1] == 0).all() and (quantized.grad[0] != 0).any()
    # One item alone has nothing to be told from.
    assert loss.measure(make_batch(quantized[:2], [0, 1])) == 0


def test_factors_of_another_width_get_a_learned_map() -> None:
    factors = np.eye(6, 5, dtype=np.float32) + 0.1
    loss = AlignmentLoss(factors, 3, weight=1.0)
    (weight,) = loss.parameters()
    assert weight.shape == (3, 5)
    torch.autograd.backward(loss.measure(make_batch(torch.randn(4, 3), [0, 1, 2, 3])))
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert not list(AlignmentLoss(factors[:, :3], 3, weight=1.0).parameters())


def test_clusters_of_codes_are_even_and_near() -> None:
    book = plant_clusters(32, n_clusters=4, dimensions=6)
    group = group_codes(book, 4)
    assert np.bincount(group).tolist() == [8, 8, 8, 8]
    planted = np.arange(32) % 4
    assert all(len(set(group[planted == cluster])) == 1 for cluster in range(4))
    assert np.bincount(group_codes(book[:7], 10)).min() >= 2
    assert group_codes(np.zeros((5, 2), dtype=np.float32), 10).tolist() == [0] * 5
    assert group_codes(book[:1], 10).tolist() == [0]


def test_diversity_is_the_cross_entropy_with_a_mate() -> None:
    # Two clusters of two codes each, so that each code has one mate.
    book = torch.tensor([[2.0, 0.0], [2.1, 0.2], [0.0, 2.0], [0.1, 2.2]], requires_grad=True)
    loss = DiversityLoss(2, weight=0.5)
    loss.start_epoch([book])
    codes = torch.tensor([[0], [3], [3]])
    measured = loss.measure(make_batch(torch.zeros(3, 2), [0, 1, 2], codes, [book]))
    by_hand = []
    for code, mate in ((0, 1), (3, 2), (3, 2)):
        others = [other for other in range(4) if other != code]
        products = torch.stack([book[code] @ book[other] for other in others])
        by_hand.append(functional.cross_entropy(products, torch.tensor(others.index(mate))))
    torch.testing.assert_close(measured, 0.5 * torch.stack(by_hand).mean())
    torch.autograd.backward(measured)
    assert book.grad is not None and torch.isfinite(book.grad).all() and book.grad.abs().sum() > 0
    assert not list(loss.parameters())


def test_levels_without_codes_or_mates_add_nothing() -> None:
    loss = DiversityLoss(2, weight=1.0)
    books = [torch.randn(1, 2), torch.randn(6, 2)]
    loss.start_epoch(books)
    dropped = torch.tensor([[0, -1], [0, -1]])
    assert loss.measure(make_batch(torch.zeros(2, 2), [0, 1], dropped, books)) == 0


def test_which_losses_and_needs_a_recipe_has(caplog: pytest.LogCaptureFixture) -> None:
    given = FitInput(("a", "b"))
    nothing = {"alignment": 0.0, "diversity": 0.0}
    assert make_letter_losses(make_recipe(nothing), given, 8) == []
    assert find_letter_needs(make_recipe(nothing)) == {VECTORS}
    assert find_letter_needs(make_recipe()) == {VECTORS, DATA}
    assert find_letter_needs(make_recipe({"factors": "f.npy"})) == {VECTORS}
    (loss,) = make_letter_losses(make_recipe({"alignment": 0.0}), given, 8)
    assert isinstance(loss, DiversityLoss)
    with caplog.at_level(logging.INFO):
        frozen = make_recipe({"alignment": 0.0}, codebook_update="ema")
        assert make_letter_losses(frozen, given, 8) == []
    assert "has no effect with rqvae.codebook_update=ema" in caplog.text


def test_factors_of_users_cannot_be_made() -> None:
    given = FitInput(("ann",), np.ones((1, 4), dtype=np.float32), subject="users")
    with pytest.raises(DataError, match=r"these embeddings hold users; give letter\.factors"):
        make_letter_losses(make_recipe(), given, 8)


def test_missing_data_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quantizer 'letter' needs --embeddings.* and --data"):
        read_input(find_letter_needs(make_recipe()), None, None, who="letter")


def plant_taste(tmp_path: Path) -> tuple[FitInput, np.ndarray]:
    """Items of 16 clusters and, shown by one coordinate, 2 tastes that their buyers share."""
    vectors = plant_clusters(96, n_clusters=16)
    taste = (np.arange(96) // 16) % 2
    vectors[:, 0] = (taste - 0.5) * 2
    data = write_data(tmp_path / "data", 96, draw_choices(taste.tolist(), 200, 8))
    return make_given(data, vectors), taste


def measure_taste(codes: np.ndarray, taste: np.ndarray) -> float:
    """How much more often items of one taste share a first code than items of two."""
    shared = codes[:, None, 0] == codes[None, :, 0]
    same = taste[:, None] == taste[None]
    return float(
        shared[same & ~np.eye(len(taste), dtype=bool)].mean() / max(shared[~same].mean(), 1e-3)
    )


def test_alignment_moves_items_of_one_taste_together(tmp_path: Path) -> None:
    given, taste = plant_taste(tmp_path)
    ratios = {}
    for weight in (0.0, 2.0):
        letter = {"alignment": weight, "diversity": 0.0, "factor_dimensions": 2}
        recipe = make_recipe(letter, **SCHEDULE)
        quantizer = build_quantizer(recipe, 16)
        history = quantizer.fit(given)
        assert all(np.isfinite(record["loss"]) for record in history)
        ratios[weight] = measure_taste(quantizer.encode(given), taste)
    assert ratios[0.0] < 1.5
    assert ratios[2.0] > 2


def test_cold_items_are_encoded_from_vectors_alone(tmp_path: Path) -> None:
    given, _ = plant_taste(tmp_path)
    result = fit_tokenizer(make_recipe(), given)
    result.tokenizer.save_pretrained(tmp_path / "out")
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(loaded.codes, result.tokenizer.codes)
    new: FloatArray = plant_clusters(12, seed=5)
    cold = loaded.quantizer.encode(FitInput(tuple("abcdefghijkl"), new))
    np.testing.assert_array_equal(cold, loaded.quantize(new))
    np.testing.assert_array_equal(cold, result.tokenizer.quantize(new))


def test_given_factors_are_used(tmp_path: Path) -> None:
    given, taste = plant_taste(tmp_path)
    sides = np.random.default_rng(0).normal(size=(2, 8))
    np.save(tmp_path / "f.npy", sides[taste])
    letter = {"factors": str(tmp_path / "f.npy"), "alignment": 4.0, "diversity": 0.0}
    quantizer = build_quantizer(make_recipe(letter, **SCHEDULE), 16)
    alone = FitInput(given.item_ids, given.vectors)
    quantizer.fit(alone)
    assert measure_taste(quantizer.encode(alone), taste) > 2
    np.save(tmp_path / "f.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"has shape \(3, 2\)"):
        quantizer.fit(alone)


@pytest.mark.slow
def test_real_neighbours_share_codes_more_often(
    find_real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    from genrec.data.recipe import DataRecipe
    from genrec.data.step import make_data
    from genrec.tokenizers.embedding.lsa import LsaEncoder
    from genrec.tokenizers.recipe import EmbedRecipe

    folder = find_real_data("amazon18-scientific")
    make_data(
        DataRecipe(source="table", interactions=str(folder / "interactions.parquet"),
                   items=str(folder / "items.parquet")),
        tmp_path / "data",
    )  # fmt: skip
    bare = make_given(tmp_path / "data")
    texts = pl.read_parquet(tmp_path / "data" / "items.parquet")["text"].fill_null("").to_list()
    vectors = LsaEncoder(EmbedRecipe.model_validate({"lsa": {"dimensions": 128}})).encode_texts(
        texts
    )
    given = make_given(tmp_path / "data", np.asarray(vectors))
    factors = factorise_interactions(bare, 32, seed=0)
    shares = {}
    for weight in (0.0, 0.3):
        schedule = {"max_epochs": 70, "batch_size": 512, "patience_epochs": 15}
        values = {"quantizer": "letter", "codebook_sizes": [256, 256, 256], "rqvae": schedule}
        letter = {"alignment": weight, "diversity": 0.0}
        recipe = TokenizeRecipe.model_validate({**values, "letter": letter})
        result = fit_tokenizer(recipe, given)
        assert len(set(result.tokenizer.sids)) == given.n_items
        shares[weight] = share_neighbours(factors, result.tokenizer.codes)
    assert shares[0.3] > 1.05 * shares[0.0]


def share_neighbours(factors: np.ndarray, codes: np.ndarray, k: int = 10) -> float:
    """The share of each item's k nearest by factors that have its first code."""
    known = np.flatnonzero(np.isfinite(factors).all(axis=1))
    cosines = factors[known] @ factors[known].T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, k, axis=1)[:, :k]
    first = codes[known, 0]
    return float((first[nearest] == first[:, None]).mean())

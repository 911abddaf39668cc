from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrec.errors import ArtifactError, DataError, RecipeError
from genrec.recipe import parse_recipe
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.quantizers.rqvae import RqVae
from genrec.tokenizers.quantizers.ulmrec import UlmRec, UserFusion
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.sections import UlmRecSection
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.types import FloatArray

from .conftest import plant_clusters

QUICK = {"hidden_sizes": [24], "latent_size": 8, "max_epochs": 20, "warmup_epochs": 6,
         "batch_size": 32, "learning_rate": 0.005}  # fmt: skip


def make_recipe(sizes: tuple[int, ...] = (8, 8, 8), **ulmrec: Any) -> TokenizeRecipe:
    return TokenizeRecipe.model_validate(
        {"quantizer": "ulmrec-users", "codebook_sizes": sizes, "rqvae": QUICK,
         "ulmrec": {"id_dimensions": 8, "heads": 2, **ulmrec}}
    )  # fmt: skip


def make_users(vectors: FloatArray, prefix: str = "user") -> FitInput:
    ids = tuple(f"{prefix}-{row}" for row in range(len(vectors)))
    return FitInput(ids, vectors, subject="users")


def make_fusion(n_users: int = 6, **values: Any) -> UserFusion:
    torch.manual_seed(0)
    section = UlmRecSection(id_dimensions=8, heads=2, **values)
    return UserFusion([f"user-{row}" for row in range(n_users)], 16, section)


def test_users_with_the_same_reviews_are_told_apart_by_their_ids() -> None:
    fusion = make_fusion().eval()
    with torch.no_grad():
        fused = fusion(torch.ones(3, 16), torch.tensor([0, 1, 1]))
    assert not torch.equal(fused[0], fused[1])
    torch.testing.assert_close(fused[1], fused[2])


def test_what_ids_add_is_bounded() -> None:
    reviews = torch.randn(6, 16)
    for share in (0.0, 0.1):
        fusion = make_fusion(id_share=share).eval()
        with torch.no_grad():
            fusion.expand.weight.mul_(1e4)
            added = fusion(reviews, torch.arange(6)) - reviews
        # Scaled reviews have a mean square of 1, so a length of 4.
        torch.testing.assert_close(added.norm(dim=1), torch.full((6,), 4 * share))


def test_later_users_have_the_mean_id() -> None:
    fusion = make_fusion(id_dropout=0.5)
    given = make_users(plant_clusters(7), "user")
    numbers = fusion.number_items(given)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5, -1]
    reviews = torch.ones(7, 16)
    with torch.no_grad():
        seen = fusion.eval()(reviews, torch.from_numpy(numbers))
        fusion.ids.copy_(fusion.ids.mean(dim=0).expand_as(fusion.ids))
        mean = fusion(reviews, torch.from_numpy(numbers))
    torch.testing.assert_close(seen[6], mean[6])
    assert not torch.allclose(seen[0], mean[0])


def test_some_users_train_without_their_id() -> None:
    fusion = make_fusion(id_dropout=0.5).train()
    with torch.no_grad():
        fused = fusion(torch.ones(200, 16), torch.zeros(200, dtype=torch.int64))
    assert len(torch.unique(fused, dim=0)) == 2
    kept = make_fusion(id_dropout=0.0).train()
    with torch.no_grad():
        fused = kept(torch.ones(200, 16), torch.zeros(200, dtype=torch.int64))
    assert len(torch.unique(fused, dim=0)) == 1


def test_users_of_one_taste_share_the_first_code_and_ids_are_learned() -> None:
    vectors = plant_clusters(96, n_clusters=8)
    vectors[8] = vectors[0]  # the same reviews, another user
    given = make_users(vectors)
    quantizer = UlmRec(make_recipe(), 16)
    history = quantizer.fit(given)
    assert history[-1]["loss"] < history[0]["loss"]
    codes = quantizer.encode(given)
    taste = np.arange(96) % 8
    same = taste[:, None] == taste[None]
    shared = codes[:, None, 0] == codes[None, :, 0]
    assert shared[same].mean() > 0.6
    assert shared[~same].mean() < 0.15
    latents = quantizer.project(given)
    assert not np.array_equal(latents[0], latents[8])
    # Reviews are what is restored, however long the ids' part is.
    decoded = quantizer.decode_codes(codes)
    assert ((vectors - decoded) ** 2).mean() < 0.5 * vectors.var(axis=0).mean()
    start = UlmRec(make_recipe(), 16)
    start._take_users(given.item_ids)
    before, after = (each.list_weights()["fusion.ids"] for each in (start, quantizer))
    assert before.shape == after.shape == (96, 8)
    assert np.abs(before - after).mean() > 0.01


def test_a_saved_tokenizer_knows_whose_id_is_whose(tmp_path: Path) -> None:
    given = make_users(plant_clusters(48), "Ünal")
    result = fit_tokenizer(make_recipe(), given)
    assert result.quality["reconstruction"]["before"]["relative_error"] < 1
    assert result.tokenizer.sids[0].startswith("<u")
    result.tokenizer.save_pretrained(tmp_path / "out")
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(loaded.codes, result.tokenizer.codes)
    np.testing.assert_array_equal(loaded.quantizer.encode(given), result.tokenizer.raw_codes)
    later = make_users(plant_clusters(9, seed=3), "later")
    np.testing.assert_array_equal(loaded.quantizer.encode(later), loaded.quantize(later.rows))
    mixed = replace(given, item_ids=given.item_ids[::-1])
    assert not np.array_equal(loaded.quantizer.project(mixed), loaded.quantizer.project(given))


def test_items_are_refused_and_users_are_fine_elsewhere() -> None:
    given = make_users(plant_clusters(30))
    with pytest.raises(DataError, match=r"these embeddings hold items; make .* subject=users"):
        UlmRec(make_recipe(), 16).fit(replace(given, subject="items"))
    quantizer = UlmRec(make_recipe(), 16)
    quantizer.fit(given)
    with pytest.raises(DataError, match="these embeddings hold items"):
        quantizer.encode(replace(given, subject="items"))
    plain = RqVae(make_recipe(), 16)
    plain.fit(given)
    assert plain.encode(given).shape == (30, 3)


def test_weights_of_something_else_are_refused() -> None:
    quantizer = UlmRec(make_recipe(), 16)
    quantizer.fit(make_users(plant_clusters(24)))
    weights = quantizer.list_weights()
    with pytest.raises(ArtifactError, match=r"weights lack ulmrec\.users"):
        UlmRec(make_recipe(), 16).restore_weights(RqVae(make_recipe(), 16).list_weights())
    with pytest.raises(ArtifactError, match=r"names or shapes differ: fusion\.ids"):
        UlmRec(make_recipe(), 16).restore_weights(
            {**weights, "fusion.ids": weights["fusion.ids"][:3]}
        )


def test_heads_divide_the_width() -> None:
    with pytest.raises(RecipeError, match=r"heads \(3\) must divide id_dimensions \(64\)"):
        parse_recipe(TokenizeRecipe, {"ulmrec": {"heads": 3}})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon18-giftcards-reviews", "amazon14-musical-reviews"])
def test_real_users_get_ids(
    find_real_data: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    from genrec.data.recipe import DataRecipe
    from genrec.data.step import make_data
    from genrec.tokenizers.embedding.embed import make_embeddings
    from genrec.tokenizers.recipe import EmbedRecipe
    from genrec.tokenizers.step import make_tokenizer

    folder = find_real_data(name)
    data = DataRecipe(
        source="table",
        interactions=str(folder / "interactions.parquet"),
        items=str(folder / "items.parquet"),
        columns={"review_text": "review_text", "review_title": "review_title"},
    )
    make_data(data, tmp_path / "data")
    embed = EmbedRecipe.model_validate({"subject": "users", "lsa": {"dimensions": 64}})
    make_embeddings(embed, tmp_path / "data", tmp_path / "embeddings")
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "ulmrec-users", "codebook_sizes": [32, 32, 32], "rqvae": {"max_epochs": 60}}
    )
    make_tokenizer(recipe, tmp_path / "embeddings", tmp_path / "out")
    tokenizer = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    assert len(set(tokenizer.sids)) == tokenizer.n_items > 400
    assert tokenizer.fitted.subject == "users"

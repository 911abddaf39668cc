from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given as every
from hypothesis import settings
from hypothesis import strategies as st

from genrec.errors import ArtifactError, CapacityError, DataError
from genrec.tokenizers.inputs import DATA, VECTORS, FitInput, read_input
from genrec.tokenizers.quantizers.gmc import DomainLoss, Gmc, find_gmc_needs, read_domains
from genrec.tokenizers.quantizers.losses import TrainBatch
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.step import fit_tokenizer
from genrec.tokenizers.uniqueness.assign import assign_unique
from genrec.tokenizers.uniqueness.unique import Collisions, make_unique
from genrec.types import FloatArray

from .conftest import plant_clusters
from .made_data import make_given, write_data

QUICK = {"hidden_sizes": [24], "latent_size": 8, "max_epochs": 12, "warmup_epochs": 4}


def make_recipe(sizes: Sequence[int] = (8, 8, 8), rqvae: dict[str, Any] | None = None,
                unique: str = "assign", **gmc: Any) -> TokenizeRecipe:  # fmt: skip
    return TokenizeRecipe.model_validate(
        {"quantizer": "gmc", "codebook_sizes": sizes, "unique": unique, "gmc": gmc,
         "rqvae": {**QUICK, **(rqvae or {})}}
    )  # fmt: skip


def make_items(
    folder: Path, domains: Sequence[str | None], vectors: FloatArray | None = None
) -> FitInput:
    data = write_data(folder, len(domains), columns={"domain": domains})
    return make_given(data, plant_clusters(len(domains)) if vectors is None else vectors)


def make_batch(latents: torch.Tensor) -> TrainBatch:
    rows = torch.arange(len(latents))
    return TrainBatch(rows, latents, latents, torch.zeros(len(rows), 0), [])


def test_the_loss_is_the_supervised_contrastive_one() -> None:
    domains = np.array([0, 0, 1, 1, 1, 2])
    quantized = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    loss = DomainLoss(domains, temperature=0.5, weight=0.2).measure(make_batch(quantized))
    rows = quantized / quantized.norm(dim=1, keepdim=True)
    anchors = []
    for i in range(5):  # the last is alone in its domain
        others = [j for j in range(6) if j != i]
        whole = torch.logsumexp(torch.stack([rows[i] @ rows[j] / 0.5 for j in others]), 0)
        mates = [j for j in others if domains[j] == domains[i]]
        anchors.append(-torch.stack([rows[i] @ rows[j] / 0.5 - whole for j in mates]).mean())
    torch.testing.assert_close(loss, 0.2 * torch.stack(anchors).mean())


def test_the_loss_falls_as_domains_part_and_has_a_gradient() -> None:
    loss = DomainLoss(np.array([0, 0, 1, 1]), temperature=0.1, weight=1.0)
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    mixed = apart[[0, 2, 1, 3]].requires_grad_()
    assert loss.measure(make_batch(apart)) < 1.0 < loss.measure(make_batch(mixed))
    torch.autograd.backward(loss.measure(make_batch(mixed)))
    assert mixed.grad is not None and torch.isfinite(mixed.grad).all() and mixed.grad.any()
    alone = DomainLoss(np.arange(4), temperature=0.1, weight=1.0)
    assert alone.measure(make_batch(apart)) == 0
    assert not list(loss.parameters())


def test_a_category_path_counts_by_its_root(tmp_path: Path) -> None:
    given = make_items(
        tmp_path / "a", ["Music > Strings", "Music > Drums > Sticks", "Home, Garden"]
    )
    assert read_domains(given, "domain") == ["Music", "Music", "Home, Garden"]
    given = make_items(tmp_path / "b", ["Music,Strings", "Home, Garden"])
    assert read_domains(given, "domain") == ["Music", "Home, Garden"]


def test_unusable_domains_are_refused_before_training(tmp_path: Path) -> None:
    given = make_items(tmp_path / "data", ["A"] * 8 + [None, ""])
    with pytest.raises(DataError, match=r"have no column 'kind'.* item_columns adds one"):
        Gmc(make_recipe(domain_field="kind"), 16).fit(given)
    with pytest.raises(DataError, match=r"2 of 10 items have no 'domain'.* \('item-8', 'item-9'\)"):
        Gmc(make_recipe(), 16).fit(given)
    with pytest.raises(DataError, match=r"all 10 items are of the domain 'A'.* use the recipe rqv"):
        Gmc(make_recipe(), 16).fit(make_items(tmp_path / "one", ["A"] * 10))
    bare = FitInput(given.item_ids, given.vectors)
    with pytest.raises(DataError, match=r"gmc needs the items' domains.* \(--data"):
        Gmc(make_recipe(), 16).fit(bare)
    users = FitInput(given.item_ids, given.vectors, subject="users")
    with pytest.raises(DataError, match="these embeddings hold users"):
        Gmc(make_recipe(), 16).fit(users)
    many = make_items(tmp_path / "many", ["A"] * 9 + ["B"])
    with pytest.raises(CapacityError, match=r"domain 'A': 9 items cannot .* 2 x 4 make 8"):
        Gmc(make_recipe((2, 4), domain_token=True), 16).fit(many)


def test_missing_inputs_are_named() -> None:
    assert find_gmc_needs(make_recipe()) == {VECTORS, DATA}
    with pytest.raises(DataError, match=r"quantizer 'gmc' needs --embeddings.* and --data"):
        read_input(find_gmc_needs(make_recipe()), None, None, who="gmc")


def mixed_domains(folder: Path, n_items: int = 96) -> tuple[FitInput, np.ndarray]:
    """Items of 16 clusters and, shown by one weak coordinate, 2 domains."""
    vectors = plant_clusters(n_items, n_clusters=16)
    domain = (np.arange(n_items) // 16) % 2
    vectors[:, 0] = (domain - 0.5) * 2
    return make_items(folder, ["AB"[number] for number in domain], vectors), domain


def test_the_loss_parts_domains_in_the_codes(tmp_path: Path) -> None:
    given, domain = mixed_domains(tmp_path / "data")
    purity = {}
    for weight in (0.0, 2.0):
        schedule = {"max_epochs": 25, "batch_size": 32, "learning_rate": 0.005}
        quantizer = Gmc(make_recipe(contrast=weight, rqvae=schedule), 16)
        history = quantizer.fit(given)
        assert quantizer.codebook_sizes == (8, 8, 8) and quantizer.fixed_levels == 0
        assert ("auxiliary" in history[-1]) == (weight > 0)
        first = quantizer.encode(FitInput(given.item_ids, given.vectors))[:, 0]
        counts = np.stack([np.bincount(first[domain == number], minlength=8) for number in (0, 1)])
        purity[weight] = counts.max(axis=0).sum() / len(first)
    assert purity[0.0] < 0.65
    assert purity[2.0] > 0.85


@pytest.mark.parametrize("unique", ["assign", "sinkhorn", "suffix"])
def test_the_domain_can_be_the_first_level(tmp_path: Path, unique: str) -> None:
    domains = ["Ä > x", "B", "C"] * 10
    given = make_items(tmp_path / "data", domains, np.zeros((30, 16), dtype=np.float32))
    # All vectors are alike, so each domain's ten items have to spread over its own codes.
    recipe = make_recipe((4, 16), domain_token=True, unique=unique)
    tokenizer = fit_tokenizer(recipe, given).tokenizer
    assert tokenizer.codebook_sizes[:3] == (3, 4, 16)
    assert tokenizer.codes[:, 0].tolist() == [2, 0, 1] * 10
    assert len(set(tokenizer.sids)) == 30
    tokenizer.save_pretrained(tmp_path / "out")
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(loaded.codes, tokenizer.codes)
    assert loaded.quantizer.codebook_sizes == (3, 4, 16)
    for before, after in zip(
        tokenizer.quantizer.codebooks, loaded.quantizer.codebooks, strict=True
    ):
        np.testing.assert_array_equal(before, after)
    new = make_items(tmp_path / "new", ["C", "Ä"], plant_clusters(2))
    assert loaded.quantizer.encode(new)[:, 0].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"knows the domains B, C, Ä, but not these.*\n.*'D'"):
        loaded.quantizer.encode(make_items(tmp_path / "odd", ["C", "D"], plant_clusters(2)))
    with pytest.raises(DataError, match="gmc needs the items' domains"):
        loaded.quantize(plant_clusters(2))


def test_without_a_domain_level_new_items_need_no_data(tmp_path: Path) -> None:
    given, _ = mixed_domains(tmp_path / "data", 32)
    tokenizer = fit_tokenizer(make_recipe(), given).tokenizer
    tokenizer.save_pretrained(tmp_path / "out")
    loaded = SemanticIdTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.codebook_sizes == (8, 8, 8)
    np.testing.assert_array_equal(loaded.codes, tokenizer.codes)
    np.testing.assert_array_equal(loaded.quantize(np.array(given.rows)), tokenizer.raw_codes)


def test_latents_stay_near_the_sum_of_their_codes(tmp_path: Path) -> None:
    given, domain = mixed_domains(tmp_path / "data")
    quantizer = Gmc(make_recipe(domain_token=True), 16)
    quantizer.fit(given)
    codes, latents, books = quantizer.encode(given), quantizer.project(given), quantizer.codebooks
    np.testing.assert_array_equal(codes[:, 0], domain)
    # The nearest row at each level, by the whole latent, is the code: the domain's too.
    residual = latents.astype(np.float64)
    for level, book in enumerate(books):
        distances = ((residual[:, None] - book[None]) ** 2).sum(2)
        chosen = distances[np.arange(len(codes)), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(1), atol=1e-4)
        residual -= book[codes[:, level]]
    assert quantizer.decode_codes(codes).shape == (96, 16)


def test_a_full_domain_spills_within_itself_only(tmp_path: Path) -> None:
    # Domain A fills 15 of its 16 codes with equal vectors; B's vectors are those of A too.
    given = make_items(tmp_path / "data", ["A"] * 15 + ["B"] * 3, np.ones((18, 16), np.float32))
    tokenizer = fit_tokenizer(make_recipe((4, 4), domain_token=True), given).tokenizer
    assert tokenizer.codes[:, 0].tolist() == [0] * 15 + [1] * 3
    more_than_all_codes = make_items(
        tmp_path / "two", ["A", "B"] * 12, np.ones((24, 16), np.float32)
    )
    codes = fit_tokenizer(
        make_recipe((4, 4), domain_token=True), more_than_all_codes
    ).tokenizer.codes
    assert codes[:, 0].tolist() == [0, 1] * 12


@settings(max_examples=25, deadline=None)
@every(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.integers(0, 1000))
def test_uniqueness_never_changes_a_domain(domains: list[int], seed: int) -> None:
    """Any latents, in the geometry that a domain level has, with at most 8 items a domain."""
    domain = np.array([d for d in (0, 1, 2) for _ in range(min(8, domains.count(d)))])
    rng = np.random.default_rng(seed)
    books = tuple(rng.normal(size=(size, 2)).astype(np.float32) for size in (2, 4))
    latents = rng.choice([0.0, 1.0, 5.0], size=(len(domain), 2)).astype(np.float32)
    distance = np.float32(1000.0 * 20)
    wide = np.concatenate([np.eye(3, dtype=np.float32)[domain] * distance, latents], axis=1)
    padded = (
        np.eye(3, 5, dtype=np.float32) * distance,
        *(np.pad(b, ((0, 0), (3, 0))) for b in books),
    )
    codes = np.zeros((len(domain), 3), dtype=np.int32)
    codes[:, 0] = domain
    assignment = assign_unique(codes, padded, lambda rows: wide[rows])
    assert assignment.codes[:, 0].tolist() == domain.tolist()
    assert len(np.unique(assignment.codes, axis=0)) == len(domain)


def test_codes_that_would_leave_their_domain_are_refused() -> None:
    books = tuple(np.eye(size, 2, dtype=np.float32) for size in (2, 2))
    collisions = Collisions(
        codes=np.zeros((3, 2), dtype=np.int32),
        codebooks=books,
        read_latents=lambda rows: np.zeros((len(rows), 2), dtype=np.float32),
        fixed_levels=1,
    )
    with pytest.raises(CapacityError, match="1 items find no free codes that begin as theirs do"):
        make_unique("assign", collisions, make_recipe().uniqueness)


def test_weights_of_another_recipe_are_refused(tmp_path: Path) -> None:
    given, _ = mixed_domains(tmp_path / "data", 32)
    plain, first = Gmc(make_recipe(), 16), Gmc(make_recipe(domain_token=True), 16)
    plain.fit(given)
    first.fit(given)
    with pytest.raises(ArtifactError, match=r"no domain level, but .*domain_token=True"):
        Gmc(make_recipe(domain_token=True), 16).restore_weights(plain.list_weights())
    with pytest.raises(ArtifactError, match=r"a domain level, but .*domain_token=False"):
        Gmc(make_recipe(), 16).restore_weights(first.list_weights())


def measure_domains(codes: np.ndarray, latents: FloatArray, domain: np.ndarray) -> dict[str, float]:
    """Purity of first codes, and the silhouette of the domains among latents."""
    from sklearn.metrics import silhouette_score

    first = codes[:, 0]
    pairs = np.unique(np.stack([first, domain]), axis=1, return_counts=True)
    largest = {code: 0 for code in first.tolist()}
    for code, count in zip(pairs[0][0].tolist(), pairs[1].tolist(), strict=True):
        largest[code] = max(largest[code], count)
    sample = np.random.default_rng(0).choice(len(domain), min(3000, len(domain)), replace=False)
    return {
        "purity": sum(largest.values()) / len(first),
        "silhouette": float(silhouette_score(latents[sample], domain[sample], metric="cosine")),
    }


def merge_real(beauty: Path, sports: Path, out: Path) -> Path:
    """One source of two domains: interactions and items, with a column that says which."""
    out.mkdir()
    items, chosen = [], []
    for name, folder in (("Beauty", beauty), ("Sports", sports)):
        prefix = pl.lit(name + "-")
        table = pl.read_parquet(folder / "items.parquet")
        items.append(
            table.select(
                item_id=prefix + pl.col("item_id").cast(pl.String),
                **{column: pl.col(column) for column in ("title", "brand", "categories")},
                domain=pl.lit(name),
            )
        )
        rows = pl.read_parquet(folder / "interactions.parquet")
        chosen.append(
            rows.select(
                "position",
                user_id=prefix + pl.col("user_id").cast(pl.String),
                item_id=prefix + pl.col("item_id").cast(pl.String),
            )
        )
    pl.concat(items, how="vertical_relaxed").write_parquet(out / "items.parquet")
    pl.concat(chosen).write_parquet(out / "interactions.parquet")
    return out


@pytest.mark.slow
def test_real_domains_part(find_real_data: Callable[[str], Path], tmp_path: Path) -> None:
    from genrec.data.recipe import DataRecipe
    from genrec.data.step import make_data
    from genrec.tokenizers.embedding.lsa import LsaEncoder
    from genrec.tokenizers.recipe import EmbedRecipe

    raw = merge_real(
        find_real_data("amazon14-beauty"), find_real_data("amazon14-sports"), tmp_path / "raw"
    )
    recipe = DataRecipe(
        source="table",
        interactions=str(raw / "interactions.parquet"),
        items=str(raw / "items.parquet"),
        item_columns={"domain": "domain"},
        text_fields=("title", "brand"),
    )
    make_data(recipe, tmp_path / "data")
    texts = pl.read_parquet(tmp_path / "data" / "items.parquet")["text"].fill_null("").to_list()
    encoder = LsaEncoder(EmbedRecipe.model_validate({"lsa": {"dimensions": 64}}))
    given = make_given(tmp_path / "data", np.asarray(encoder.encode_texts(texts)))
    domain = np.unique(read_domains(given, "domain"), return_inverse=True)[1]
    found = {}
    for weight in (0.0, 0.1):
        quantizer = Gmc(
            make_recipe((128, 128, 128), {"max_epochs": 20, "latent_size": 32}, contrast=weight), 64
        )
        quantizer.fit(given)
        found[weight] = measure_domains(quantizer.encode(given), quantizer.project(given), domain)
    assert found[0.1]["silhouette"] > found[0.0]["silhouette"] + 0.1
    assert found[0.1]["purity"] >= found[0.0]["purity"]

"""Choosing, placing, moving and losing codes, one batch at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genrec.tokenizers.quantizers.rqvae_codes import ResidualCodes, find_codes
from genrec.tokenizers.recipe import TokenizeRecipe


def make_codes(sizes: tuple[int, ...] = (8, 8, 8), **values: Any) -> ResidualCodes:
    torch.manual_seed(0)
    section = {"latent_size": 4, "dead_code_share": 0.0, **values}
    return ResidualCodes(TokenizeRecipe.model_validate({"codebook_sizes": sizes, "rqvae": section}))


def draw_latents(n: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def copy_books(codes: ResidualCodes) -> list[Tensor]:
    return [book.detach().clone() for book in codes.list_codebooks()]


@pytest.fixture(autouse=True)
def _keep_generator() -> Any:
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_nearest_code_of_each_level_is_found() -> None:
    latents = draw_latents().double()
    books = [draw_latents(8, seed).double() / (seed + 1) for seed in (1, 2, 3)]
    found = find_codes(latents, books)
    residual = latents
    for level, book in enumerate(books):
        distances = torch.cdist(residual, book, compute_mode="donot_use_mm_for_euclid_dist")
        assert torch.equal(found[:, level], distances.argmin(1))
        residual = residual - book[found[:, level]]


def test_of_equally_near_codes_the_first_is_found() -> None:
    book = draw_latents(6, 1).double()
    twice = torch.cat([book, book])
    latents = draw_latents(50).double()
    assert torch.equal(find_codes(latents, [twice]), find_codes(latents, [book]))
    almost = torch.cat([book * (1 + 1e-15), book])
    assert torch.equal(find_codes(latents, [almost]), find_codes(latents, [book]))


def test_the_loss_pulls_latents_to_codes_and_gradient_codes_to_latents() -> None:
    codes = make_codes((8, 8), codebook_update="gradient", commitment=0.25).train()
    latents = draw_latents()
    codes.place_codes(latents, 200)
    latents.requires_grad_()
    quantized = codes(latents)
    torch.autograd.backward(quantized.loss)
    books = copy_books(codes)
    residual, pull, expected = latents.detach(), torch.zeros_like(latents), 0.0
    for level, (layer, book) in enumerate(zip(codes.library.layers, books, strict=True)):
        chosen = quantized.codes[:, level]
        error = residual - book[chosen]
        expected += 1.25 * float(error.square().mean()) / 2
        pull += 0.25 * 2 * error / error.numel() / 2
        push = torch.zeros_like(book).index_add_(0, chosen, -2 * error / error.numel() / 2)
        torch.testing.assert_close(layer._codebook.embed.grad[0], push)
        residual = residual - book[chosen]
    assert float(quantized.loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(latents.grad, pull)


def test_average_codes_have_no_gradient_but_follow_their_items() -> None:
    codes = make_codes(codebook_update="ema", codebook_decay=0.5).train()
    latents = draw_latents()
    codes.place_codes(latents, 200)
    before = copy_books(codes)
    assert not list(codes.parameters())
    shifted = latents + 1
    quantized = codes(shifted)
    first = before[0][quantized.codes[:, 0]]
    after = codes.list_codebooks()[0][quantized.codes[:, 0]]
    assert (after - shifted).norm() < (first - shifted).norm()
    # The values are sums of the rows that were chosen from, not of those that moved.
    total = sum(book[quantized.codes[:, level]] for level, book in enumerate(before))
    torch.testing.assert_close(quantized.values, total)


def test_gradients_go_straight_through_or_turn_with_the_code() -> None:
    latents = draw_latents(50)
    weights = draw_latents(50, 9)
    gradients, values = {}, {}
    for rotate in (False, True):
        codes = make_codes(rotation_trick=rotate, commitment=0.0).train()
        codes.place_codes(latents, 50)
        inputs = latents.clone().requires_grad_()
        values[rotate] = codes(inputs).values
        torch.autograd.backward((values[rotate] * weights).sum())
        gradients[rotate] = inputs.grad
    torch.testing.assert_close(values[True], values[False])
    torch.testing.assert_close(gradients[False], weights)
    # Turned, and scaled by the ratio of lengths.
    assert not torch.allclose(gradients[True], weights, rtol=0.01)
    ratio = values[True].detach().norm(dim=1) / latents.norm(dim=1)
    torch.testing.assert_close(gradients[True].norm(dim=1), weights.norm(dim=1) * ratio)


def test_kmeans_places_codes_and_random_ones_stay_where_they_are() -> None:
    latents = draw_latents(400)
    placed, drawn = make_codes(), make_codes(codebook_init="random")
    before = copy_books(drawn)
    for codes in (placed, drawn):
        codes.place_codes(latents, 100)
    assert all(map(torch.equal, before, copy_books(drawn)))
    errors = []
    for codes in (placed, drawn):
        books = codes.list_codebooks()
        found = find_codes(latents, books)
        rest = latents - sum(book[found[:, level]] for level, book in enumerate(books))
        errors.append(float(rest.square().mean()))
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_codes_restart_on_items(update: str) -> None:
    latents = draw_latents(400)
    used = {}
    for share in (0.0, 0.5):
        codes = make_codes(
            (16,), codebook_update=update, codebook_init="random", dead_code_share=share
        ).train()
        placed = codes.library.layers[0]._codebook
        for rows in (placed.embed, placed.embed_avg):
            rows.data[0, 1:] += 10  # only the first code is near any item
        codes.place_codes(latents, 400)
        for _ in range(40):
            codes(latents)
        used[share] = len(find_codes(latents, codes.list_codebooks()).unique())
    assert used == {0.0: 1, 0.5: 16}


def test_quantize_dropout_leaves_later_levels_out_in_training_only() -> None:
    codes = make_codes(quantize_dropout=True).train()
    latents = draw_latents()
    codes.place_codes(latents, 200)
    seen = set()
    for _ in range(20):
        books = copy_books(codes)
        quantized = codes(latents)
        kept = int((quantized.codes[0] >= 0).sum())
        seen.add(kept)
        assert (quantized.codes[:, :kept] >= 0).all()
        assert (quantized.codes[:, kept:] == -1).all()
        total = sum(books[level][quantized.codes[:, level]] for level in range(kept))
        torch.testing.assert_close(quantized.values, total)
    assert seen == {1, 2, 3}
    assert (codes.eval()(latents).codes >= 0).all()


def test_sinkhorn_evens_out_the_last_level_of_a_batch_in_training_only() -> None:
    latents = draw_latents(256) ** 3  # dense around the origin
    crowded = {}
    for epsilon in (0.0, 0.01):
        codes = make_codes((4, 8), sinkhorn_epsilon=epsilon, codebook_init="random").train()
        codes.place_codes(latents, 256)
        counts = [codes(latents).codes[:, level].bincount(minlength=4) for level in (0, 1)]
        crowded[epsilon] = counts
        nearest = find_codes(latents, codes.list_codebooks())
        assert torch.equal(codes.eval()(latents).codes, nearest)
    # An even use of the last level is 32 items a code; the first level is left alone.
    assert int(crowded[0.0][1].max()) > 64
    assert int(crowded[0.01][1].max()) < 56
    assert torch.equal(crowded[0.0][0], crowded[0.01][0])


def test_fewer_items_than_codes_are_placed_without_a_warning() -> None:
    codes = make_codes((32, 8)).train()
    latents = draw_latents(3)
    codes.place_codes(latents, 3)
    books = codes.list_codebooks()
    found = find_codes(latents, books)
    total = sum(book[found[:, level]] for level, book in enumerate(books))
    torch.testing.assert_close(total, latents, atol=1e-2, rtol=1e-2)

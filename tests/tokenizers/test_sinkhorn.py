"""The even spread of items over codes: its marginals, its optimum, and numbers that are extreme."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genrec.tokenizers.quantizers.sinkhorn import spread_evenly
from genrec.types import FloatArray


def draw_distances(n: int, n_codes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, n_codes, generator=torch.Generator().manual_seed(seed))


def iterate_in_float64(distances: torch.Tensor, epsilon: float, iterations: int) -> FloatArray:
    """The plain iteration, on exponentials; right wherever these do not underflow."""
    values = distances.double().numpy()
    low, high = values.min(), values.max()
    plan = np.exp(-(2 * values - low - high) / (high - low) / epsilon)
    for _ in range(iterations):
        plan /= plan.sum(axis=1, keepdims=True) * plan.shape[0]
        plan /= plan.sum(axis=0, keepdims=True) * plan.shape[1]
    return plan


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16), (1, 5), (5, 1), (1, 1)])
def test_items_and_codes_all_get_their_even_share(shape: tuple[int, int]) -> None:
    plan = spread_evenly(draw_distances(*shape), 0.05, 2000).exp()
    n, n_codes = shape
    torch.testing.assert_close(plan.sum(0), torch.full((n_codes,), 1 / n_codes), atol=0, rtol=1e-5)
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n), atol=0, rtol=2e-3)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_it_agrees_with_the_plain_iteration_in_float64(epsilon: float) -> None:
    distances = draw_distances(60, 12, seed=1)
    expected = iterate_in_float64(distances, epsilon, 50)
    plan = spread_evenly(distances, epsilon, 50)
    np.testing.assert_allclose(plan.exp().numpy(), expected, rtol=2e-3, atol=1e-9)
    np.testing.assert_array_equal(plan.argmax(1).numpy(), expected.argmax(1))


def test_what_underflows_as_exponentials_is_kept_as_logarithms() -> None:
    distances = draw_distances(300, 32, seed=2)
    distances[0] = 1e6  # all others are equal to float32 beside it
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.exp(-distances.numpy().astype(np.float32) / np.float32(0.003))
    assert (plain[0] == 0).all(), "the case is one that exponentials cannot hold"
    plan = spread_evenly(distances, 0.003, 50)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.exp().sum(0), torch.full((32,), 1 / 32), atol=0, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 2e38])
def test_the_scale_of_distances_does_not_matter(scale: float) -> None:
    distances = draw_distances(50, 10, seed=3)
    plan = spread_evenly(distances * scale, 0.02, 50)
    assert torch.isfinite(plan).all()
    expected = spread_evenly(distances, 0.02, 50)
    torch.testing.assert_close(plan, expected, atol=5e-3, rtol=1e-3)


def test_neither_does_their_sign_nor_a_constant() -> None:
    distances = torch.arange(-8.0, 8.0).reshape(4, 4).mul_(1e38 / 16)
    plan = spread_evenly(distances, 0.1, 100)
    assert torch.isfinite(plan).all()
    plain = spread_evenly(torch.arange(0.0, 16.0).reshape(4, 4), 0.1, 100)
    torch.testing.assert_close(plan, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 7.5, -3e38, 3e38])
def test_equal_distances_give_an_even_plan(value: float) -> None:
    plan = spread_evenly(torch.full((6, 4), value), 0.003, 10)
    torch.testing.assert_close(plan, torch.full((6, 4), -math.log(24)))


def test_a_crowd_at_one_code_is_spread_and_each_goes_where_it_loses_least() -> None:
    # All eight items are nearest to code 0, and the first four nearly as near to code 1.
    distances = torch.tensor([[0.0, 0.1]] * 4 + [[0.0, 1.0]] * 4)
    assert distances.argmin(1).tolist() == [0] * 8
    codes = spread_evenly(distances, 0.02, 200).argmax(1)
    assert codes.tolist() == [1] * 4 + [0] * 4


def test_the_input_is_left_alone_and_no_graph_is_kept() -> None:
    distances = draw_distances(10, 4).requires_grad_()
    before = distances.detach().clone()
    plan = spread_evenly(distances, 0.1, 3)
    assert not plan.requires_grad
    assert torch.equal(distances.detach(), before)
    assert plan.dtype == torch.float32
    assert spread_evenly(before.double(), 0.1, 3).dtype == torch.float64


def test_a_stack_of_plans_is_what_each_is_alone() -> None:
    stack = torch.stack([draw_distances(6, 9, seed) * 10**seed for seed in range(4)])
    plans = spread_evenly(stack, 0.05, 30)
    for distances, plan in zip(stack, plans, strict=True):
        torch.testing.assert_close(plan, spread_evenly(distances, 0.05, 30))

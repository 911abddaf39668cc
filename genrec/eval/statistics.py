"""How sure a figure is: bootstrap intervals over users, and paired tests between systems.

Owns the resampling. Works on per-user values and refuses to know which metric or system they belong
to. Both methods depend on the values only through how many users share each distinct value, so that
a resample of a million users costs as much as there are distinct values: about a dozen for one
target a user. Metrics with many distinct values are resampled user by user, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.errors import DataError

ValueArray = NDArray[np.float64]

_MOST_DISTINCT = 4096
_BLOCK_CELLS = 1 << 22
_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users with the bootstrap interval around it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The mean of a - b over users, and how often chance alone gives one at least as far from 0."""

    difference: float
    p_value: float


def bootstrap_interval(
    values: ValueArray, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean over users with its percentile bootstrap interval.

    Args:
        values: one value a user.
        n_bootstrap: how many resamples of all users, with replacement.
        confidence: the share of resampled means inside the interval.
        seed: of the resampling.

    Shapes:
        values: (U,) float64.

    Raises:
        DataError: no users.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. Resampling U
        users with replacement is drawing how often each distinct value occurs from a multinomial
        law, which is what is drawn here: the same distribution, not an approximation.
    """
    _check_values(values)
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        return Interval(float(distinct[0]), float(distinct[0]), float(distinct[0]))
    if len(distinct) <= _MOST_DISTINCT:
        means = _resample_counts(distinct, counts, n_bootstrap, rng)
    else:
        means = _resample_users(values, n_bootstrap, rng)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def compare_pairs(
    first: ValueArray, second: ValueArray, *, n_permutations: int = 10_000, seed: int = 0
) -> PairedTest:
    """The paired randomisation (sign-flip) test of two systems on the same users, two-sided.

    If neither system is better, each user's difference is as likely with the other sign. The
    p-value is the share of random sign patterns whose mean is at least as far from 0 as the one
    observed, the observed one counted among them. Nothing is corrected for making many comparisons.

    Args:
        first: one value a user of the system `a`.
        second: the same users' values of the system `b`.
        n_permutations: how many sign patterns are drawn.
        seed: of the drawing.

    Shapes:
        first, second: (U,) float64, row u the same user.

    Raises:
        DataError: no users, or not the same number of them.

    Source: Smucker, Allan & Carterette, A Comparison of Statistical Significance Tests for IR
        Evaluation, CIKM 2007, section 3.3; the count of the observed pattern after Phipson & Smyth,
        Permutation P-values Should Never Be Zero, 2010.
    """
    if len(first) != len(second):
        raise DataError(
            f"a paired test needs the same users on both sides, not {len(first)} and {len(second)}"
        )
    _check_values(first)
    _check_values(second)
    differences = first - second
    observed = float(differences.mean())
    moved = differences[differences != 0.0]
    if len(moved) == 0:
        return PairedTest(0.0, 1.0)
    rng = np.random.default_rng(seed)
    sizes, counts = np.unique(np.abs(moved), return_counts=True)
    limit = abs(float(moved.sum())) - _SLACK * float(np.abs(moved).sum())
    if len(sizes) <= _MOST_DISTINCT:
        sums = _flip_counts(sizes, counts, n_permutations, rng)
    else:
        sums = _flip_users(moved, n_permutations, rng)
    beyond = int((np.abs(sums) >= limit).sum())
    return PairedTest(observed, (beyond + 1) / (n_permutations + 1))


def _resample_counts(
    distinct: ValueArray, counts: NDArray[np.int64], n_rounds: int, rng: np.random.Generator
) -> ValueArray:
    n_users = int(counts.sum())
    blocks = [
        rng.multinomial(n_users, counts / n_users, size=size) @ distinct / n_users
        for size in _split_rounds(n_rounds, len(distinct))
    ]
    return np.concatenate(blocks)


def _resample_users(values: ValueArray, n_rounds: int, rng: np.random.Generator) -> ValueArray:
    n_users = len(values)
    chosen = (rng.integers(0, n_users, size=n_users, dtype=np.int32) for _ in range(n_rounds))
    return np.array([values[users].mean() for users in chosen])


def _flip_counts(
    sizes: ValueArray, counts: NDArray[np.int64], n_rounds: int, rng: np.random.Generator
) -> ValueArray:
    blocks = [
        (2 * rng.binomial(counts, 0.5, size=(size, len(sizes))) - counts) @ sizes
        for size in _split_rounds(n_rounds, len(sizes))
    ]
    return np.concatenate(blocks)


def _flip_users(values: ValueArray, n_rounds: int, rng: np.random.Generator) -> ValueArray:
    return np.array([_flip_once(values, rng) for _ in range(n_rounds)])


def _flip_once(values: ValueArray, rng: np.random.Generator) -> float:
    bits = np.unpackbits(np.frombuffer(rng.bytes(len(values) // 8 + 1), dtype=np.uint8))
    return float(values.sum() - 2.0 * values[bits[: len(values)].view(np.bool_)].sum())


def _split_rounds(n_rounds: int, width: int) -> Iterator[int]:
    """Sizes of blocks of rounds, each of about as many cells as stay in little memory."""
    size = max(1, _BLOCK_CELLS // width)
    for start in range(0, n_rounds, size):
        yield min(size, n_rounds - start)


def _check_values(values: ValueArray) -> None:
    if len(values) == 0:
        raise DataError("no users were evaluated, so there is nothing to average or compare")
    if not np.isfinite(values).all():
        raise DataError("a per-user value is not a finite number, so no mean or test is defined")

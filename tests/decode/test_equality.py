"""The embedded engine equals constrained `generate` on any catalogue, whatever the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from tests.decode.conftest import build_model
from tests.decode.test_torch_engine import generate_constrained

# Full attention, grouped heads, windows, soft caps, learned positions, ALiBi, scaled logits.
ARCHITECTURES = ("qwen3", "llama", "gemma2", "gemma3", "gpt2", "bloom", "granite", "cohere")
# `generate` gives beams that do not exist a score of about -1e9.
LOWEST = -1e8


@dataclass(frozen=True)
class Case:
    """One catalogue and what is asked of it."""

    architecture: str
    codes: np.ndarray
    token_ids: list[np.ndarray]
    prompts: list[list[int]]
    legal: np.ndarray
    width: int

    def list_filters(self):
        return [ItemFilter(allowed=self.legal)] * len(self.prompts)


@st.composite
def cases(draw):
    """Tries shallow and deep, of few and many codes, even and skewed, with only children."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_levels, n_items = draw(st.integers(1, 5)), draw(st.integers(1, 80))
    fan_out = draw(st.integers(1, 30))
    skew = draw(st.sampled_from([0.0, 1.0, 2.5]))
    weights = 1 / np.arange(1, fan_out + 1) ** skew
    codes = rng.choice(fan_out, (n_items, n_levels), p=weights / weights.sum())
    if draw(st.booleans()):
        codes[:, draw(st.integers(0, n_levels - 1))] = 0  # one child each
    codes = rng.permutation(np.unique(codes, axis=0))
    # Levels may share tokens, as in a vocabulary of another toolkit.
    token_ids = [rng.permutation(np.arange(200, 300))[:fan_out] for _ in range(n_levels)]
    prompts = [rng.integers(0, 200, int(size)).tolist() for size in rng.integers(1, 12, 2)]
    legal = rng.random(len(codes)) < draw(st.sampled_from([1.0, 0.5]))
    legal[rng.integers(len(codes))] = True
    architecture = draw(st.sampled_from(ARCHITECTURES))
    return Case(architecture, codes, token_ids, prompts, legal, draw(st.integers(2, 20)))


@cache
def find_model(architecture):
    return build_model(architecture)


@cache
def find_way(architecture):
    token_ids = [np.arange(200, 210)]
    return TorchEngine(find_model(architecture), Trie.from_codes([[0]]), token_ids).way


def compare(case):
    model = find_model(case.architecture)
    trie = Trie.from_codes(case.codes)
    engine = TorchEngine(model, trie, case.token_ids, way=find_way(case.architecture))
    k = min(case.width, int(case.legal.sum()))
    search = Search(width=case.width)
    ranked = engine.rank_prompts(case.prompts, k, search, filters=case.list_filters())
    rows, scores = generate_constrained(
        model,
        case.codes[case.legal],
        case.token_ids,
        case.prompts,
        width=case.width,
        k=case.width,
    )
    items = np.flatnonzero(case.legal)[rows]
    for user in range(len(case.prompts)):
        real = np.flatnonzero((scores[user] > LOWEST) & (rows[user] >= 0))[:k]
        np.testing.assert_array_equal(ranked.item_index[user], items[user, real])
        np.testing.assert_allclose(ranked.scores[user], scores[user, real], atol=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(cases())
def test_equals_constrained_generate(case):
    compare(case)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_equals_constrained_generate_at_length(case):
    compare(case)

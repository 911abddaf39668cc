"""The embedded engine against constrained `generate`, against brute force, and under fuzzing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from genrec.decode.engine import Search
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.errors import DataError, ModelError
from tests.contracts.engine_contract import EVERY_NORMALIZE, EngineContract, assert_valid, exclude

ARCHITECTURES = ("qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "cohere", "bloom")


def generate_constrained(model, codes, token_ids, prompts, *, width, k):
    """Hugging Face's own beam search with a dictionary trie: (items, scores)."""
    sequences = np.column_stack([ids[codes[:, level]] for level, ids in enumerate(token_ids)])
    following, item_of = {}, {}
    for item, sequence in enumerate(sequences.tolist()):
        item_of[tuple(sequence)] = item
        for level, token in enumerate(sequence):
            following.setdefault(tuple(sequence[:level]), set()).add(token)
    longest, n_levels = max(map(len, prompts)), codes.shape[1]
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    output = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        generation_config=GenerationConfig(
            num_beams=width,
            num_return_sequences=k,
            max_new_tokens=n_levels,
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        ),
        # Where fewer beams exist than are asked for, `generate` goes on from prefixes of no item.
        prefix_allowed_tokens_fn=lambda _row, seen: list(
            following.get(tuple(seen[longest:].tolist()), [0])
        ),
    )
    items = [item_of.get(tuple(row[longest:].tolist()), -1) for row in output.sequences]
    return np.array(items).reshape(-1, k), output.sequences_scores.view(-1, k).numpy()


def score_all_items(model, codes, token_ids, prompt, normalize):
    """The log-probability of every item by definition: its whole sequence run through forward."""
    sequences = np.column_stack([ids[codes[:, level]] for level, ids in enumerate(token_ids)])
    whole = np.column_stack([np.tile(prompt, (len(codes), 1)), sequences])
    with torch.inference_mode():
        logits = model(torch.from_numpy(whole)).logits[:, len(prompt) - 1 : -1].double().numpy()
    scores = np.zeros(len(codes))
    for level, ids in enumerate(token_ids):
        row = logits[:, level]
        own = np.take_along_axis(row, sequences[:, level : level + 1], axis=1)[:, 0]
        if normalize == "vocab":
            scores += own - np.logaddexp.reduce(row, axis=1)
        elif normalize == "level":
            scores += own - np.logaddexp.reduce(row[:, ids], axis=1)
        else:
            same = (codes[:, None, :level] == codes[None, :, :level]).all(axis=2)
            for item in range(len(codes)):
                children = np.unique(sequences[same[item], level])
                scores[item] += own[item] - np.logaddexp.reduce(row[item, children])
    return scores


@pytest.fixture(scope="module")
def engine(qwen3, codes, token_ids):
    return TorchEngine(qwen3, Trie.from_codes(codes), token_ids)


class TestTorchEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, qwen3, codes, token_ids):
        return TorchEngine(qwen3, Trie.from_codes(codes), token_ids)


class TestCopyingTorchEngine(EngineContract):
    """The same contract for a model that takes no tree mask, in batches of one or two users."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, make_model, codes, token_ids):
        return TorchEngine(make_model("bloom"), Trie.from_codes(codes), token_ids, batch_tokens=400)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_constrained_generate(architecture, make_model, codes, token_ids, prompts):
    model = make_model(architecture)
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    for width, k in ((8, 8), (20, 10)):
        items, scores = generate_constrained(model, codes, token_ids, prompts, width=width, k=k)
        ranked = engine.rank_prompts(prompts, k, Search(width=width))
        np.testing.assert_array_equal(ranked.item_index, items)
        np.testing.assert_allclose(ranked.scores, scores, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_equals_constrained_generate_on_random_catalogues(seed, make_model, prompts):
    rng = np.random.default_rng(seed)
    n_levels = int(rng.integers(1, 6))
    sizes = rng.integers(2, 40, n_levels)
    codes = rng.permutation(np.unique(rng.integers(0, sizes, (60, n_levels)), axis=0))
    # Levels share their tokens here, as they may in a vocabulary of another toolkit.
    token_ids = [rng.permutation(np.arange(200, 300))[:size] for size in sizes]
    first_codes = len(np.unique(codes[:, 0]))
    width = int(rng.integers(2, max(first_codes, 3)))
    k = min(width, len(codes))
    model = make_model("llama", seed=seed)
    # A beam per first code at most: with more, `generate` fills up with beams that do not exist.
    width = min(width, first_codes)
    k = min(k, width)
    items, scores = generate_constrained(model, codes, token_ids, prompts, width=width, k=k)
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    ranked = engine.rank_prompts(prompts, k, Search(width=width))
    np.testing.assert_array_equal(ranked.item_index, items)
    np.testing.assert_allclose(ranked.scores, scores, atol=1e-4)


@EVERY_NORMALIZE
@pytest.mark.parametrize("architecture", ["gemma3", "gpt2"])
def test_scores_are_exact(architecture, normalize, make_model, codes, token_ids, prompts):
    model = make_model(architecture)
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    ranked = engine.rank_prompts(prompts, len(codes), Search(normalize=normalize))
    assert ranked.certified.all()
    for user, prompt in enumerate(prompts):
        expected = score_all_items(model, codes, token_ids, prompt, normalize)
        np.testing.assert_allclose(
            ranked.scores[user], expected[ranked.item_index[user]], atol=1e-4
        )
        np.testing.assert_array_equal(ranked.item_index[user], np.argsort(-expected))


def test_child_scores_are_normalised_over_what_the_filter_leaves(engine, codes, prompts):
    first = codes[0, 0]
    excluded = [np.flatnonzero(codes[:, 0] != first)] * len(prompts)
    n_legal = int((codes[:, 0] == first).sum())
    ranked = engine.rank_prompts(
        prompts, n_legal, Search(normalize="child"), filters=exclude(excluded)
    )
    np.testing.assert_allclose(np.exp(ranked.scores).sum(axis=1), 1, atol=1e-4)


def test_padding_changes_nothing(engine, prompts):
    long = [7] * 100
    alone = engine.rank_prompts([prompts[2]], 10)
    padded = engine.rank_prompts([long, prompts[2]], 10)
    np.testing.assert_array_equal(padded.item_index[1], alone.item_index[0])
    np.testing.assert_allclose(padded.scores[1], alone.scores[0], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 120, 10_000])
def test_the_token_budget_changes_nothing(batch_tokens, engine, qwen3, token_ids, prompts):
    other = TorchEngine(qwen3, engine.trie, token_ids, batch_tokens=batch_tokens)
    expected, found = (each.rank_prompts(prompts, 10) for each in (engine, other))
    np.testing.assert_array_equal(found.item_index, expected.item_index)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_a_wide_search_of_a_sure_model_is_certified_and_right(make_model, codes, token_ids):
    model = make_model("qwen3", initializer_range=1.0)
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    prompts = np.random.default_rng(3).integers(0, 200, (20, 6)).tolist()
    exact = engine.rank_prompts(prompts, len(codes), Search(normalize="child")).item_index[:, :3]
    narrow = engine.rank_prompts(prompts, 3, Search(width=3, normalize="child"))
    wide = engine.rank_prompts(prompts, 3, Search(width=30, normalize="child"))
    assert wide.certified.mean() > narrow.certified.mean() > 0
    for ranked in (narrow, wide):
        np.testing.assert_array_equal(ranked.item_index[ranked.certified], exact[ranked.certified])


def test_a_uniform_model_answers_with_distinct_real_items_only(make_model, codes, token_ids):
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    rng = np.random.default_rng(0)
    prompts = [[int(token)] for token in rng.integers(0, 300, 1000)]
    excluded = [rng.choice(len(codes), int(size)) for size in rng.integers(0, 60, 1000)]
    ranked = engine.rank_prompts(prompts, 20, Search(width=20), filters=exclude(excluded))
    assert ranked.item_index.size == 20_000
    assert_valid(ranked, len(codes))
    assert not ranked.certified.all(), "all that was pruned scores as high"
    for items, banned in zip(ranked.item_index, excluded, strict=True):
        assert not np.isin(items, banned).any()


def test_half_precision_ranks_nearly_as_single(make_model, codes, token_ids, prompts):
    trie = Trie.from_codes(codes)
    single = TorchEngine(make_model("llama"), trie, token_ids).rank_prompts(prompts, len(codes))
    half = TorchEngine(make_model("llama").to(torch.bfloat16), trie, token_ids)
    ranked = half.rank_prompts(prompts, len(codes))
    assert_valid(ranked, len(codes))
    for user in range(len(prompts)):
        scores = np.empty((2, len(codes)))
        scores[0, single.item_index[user]] = single.scores[user]
        scores[1, ranked.item_index[user]] = ranked.scores[user]
        assert np.corrcoef(scores)[0, 1] > 0.98


def test_one_level_and_one_item_are_enough(qwen3, token_ids, prompts):
    flat = TorchEngine(qwen3, Trie.from_codes([[3], [1]]), token_ids[:1])
    assert_valid(flat.rank_prompts(prompts, 2), 2)
    single = TorchEngine(qwen3, Trie.from_codes([[1, 2, 3, 4]]), token_ids)
    assert single.rank_prompts(prompts, 1).item_index.tolist() == [[0]] * len(prompts)


def test_codes_without_a_token_are_refused(qwen3, codes, token_ids):
    trie = Trie.from_codes(codes)
    with pytest.raises(ModelError, match="tokens for 3 levels were given, but items have 4 codes"):
        TorchEngine(qwen3, trie, token_ids[:3])
    with pytest.raises(ModelError) as error:
        TorchEngine(qwen3, trie, [token_ids[0], token_ids[1][:5], token_ids[2], token_ids[3][:7]])
    assert "2 problems" in str(error.value)
    assert "level 1 has tokens for 5 codes, but codes go up to 7" in str(error.value)


def test_prompts_must_leave_room_for_the_codes(make_model, codes, token_ids):
    engine = TorchEngine(make_model("gpt2"), Trie.from_codes(codes), token_ids)
    assert engine.rank_prompts([[1] * 125], 3).item_index.shape == (1, 3)
    with pytest.raises(DataError, match="prompt 0 has 126 tokens; the model takes 125"):
        engine.rank_prompts([[1] * 126], 3)


def test_scores_that_are_not_numbers_are_refused(make_model, codes, token_ids, prompts):
    model = make_model("qwen3")
    engine = TorchEngine(model, Trie.from_codes(codes), token_ids)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"not a finite number.*load it with dtype"):
        engine.rank_prompts(prompts, 3)

"""The engine of titles: the contract, Hugging Face's `generate`, brute force, and its own rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.filtered import rank_filtered
from genrec.decode.prompt_cache import CopiedPromptCache
from genrec.decode.title_engine import TitleEngine
from genrec.errors import CapacityError, DecodeError, ModelError
from tests.contracts.engine_contract import EngineContract, assert_valid, exclude

from .made_titles import (
    END,
    build_trie,
    draw_titles,
    rank_scores,
    score_titles,
    search_plainly,
)

SEQUENCES = draw_titles(60)


def generate_titles(model, sequences, prompt, *, width, k):
    """Hugging Face's own beam search to the end token, over a dictionary of prefixes."""
    following: dict[tuple[int, ...], set[int]] = {}
    item_of = {}
    for item, sequence in enumerate(sequences):
        item_of[tuple(sequence)] = item
        for place, token in enumerate(sequence):
            following.setdefault(tuple(sequence[:place]), set()).add(token)

    def allow(_row, seen):
        rest = seen[len(prompt) :].tolist()
        return sorted(following.get(tuple(rest), {END}))

    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(
            num_beams=width,
            num_return_sequences=k,
            max_new_tokens=max(map(len, sequences)),
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            eos_token_id=END,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        ),
        prefix_allowed_tokens_fn=allow,
    )
    items = []
    for sequence in output.sequences[:, len(prompt) :].tolist():
        items.append(item_of[tuple(sequence[: sequence.index(END) + 1])])
    return items, output.sequences_scores.numpy()


def distinct(sequences):
    return [list(row) for row in dict.fromkeys(map(tuple, sequences))]


@pytest.fixture(scope="module")
def engine(qwen3):
    return TitleEngine(qwen3, build_trie(SEQUENCES))


class TestTitleEngine(EngineContract):
    normalizes = ("vocab", "child")

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, qwen3):
        return TitleEngine(qwen3, build_trie(SEQUENCES))


class TestCopyingTitleEngine(EngineContract):
    """The same for a model that takes no tree mask, in small batches."""

    normalizes = ("vocab", "child")

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, make_model):
        return TitleEngine(make_model("bloom"), build_trie(SEQUENCES), batch_tokens=2000)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2", "cohere", "bloom"])
def test_equals_generate_to_the_end_token(architecture, make_model, prompts):
    """As wide as the catalogue: no ended title is lost for its place among the continuations."""
    sequences = distinct(SEQUENCES)
    model = make_model(architecture)
    engine = TitleEngine(model, build_trie(sequences))
    for prompt in prompts[:2]:
        items, scores = generate_titles(model, sequences, prompt, width=len(sequences), k=12)
        ranked = engine.rank_prompts([prompt], 12, Search(width=len(sequences)))
        assert ranked.item_index[0].tolist() == items
        np.testing.assert_allclose(ranked.scores[0], scores, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_search_is_a_plain_beam_search_and_no_worse_than_generate(
    seed, make_model, prompts
):
    sequences = distinct(draw_titles(80, seed=seed, n_tokens=4 + 3 * seed, longest=6))
    model, prompt = make_model("llama", seed=seed), prompts[seed]
    engine = TitleEngine(model, build_trie(sequences))
    for width in (5, 12):
        ranked = engine.rank_prompts([prompt], 5, Search(width=width))
        assert ranked.item_index[0].tolist() == search_plainly(model, sequences, prompt, width, 5)
        _, scores = generate_titles(model, sequences, prompt, width=width, k=5)
        assert (ranked.scores[0] >= scores - 1e-4).all()


@pytest.mark.parametrize("normalize", ["vocab", "child"])
def test_scores_are_exact_and_equal_titles_tie(normalize, engine, qwen3, prompts):
    ranked = engine.rank_prompts(prompts, 60, Search(normalize=normalize))
    assert ranked.certified.all() and (ranked.bound == -np.inf).all()
    for user, prompt in enumerate(prompts):
        expected = score_titles(qwen3, SEQUENCES, prompt, normalize)
        found = expected[ranked.item_index[user]]
        np.testing.assert_allclose(ranked.scores[user], found, atol=1e-4)
        assert ranked.item_index[user].tolist() == rank_scores(expected, 60).tolist()
    assert len(distinct(SEQUENCES)) < 55, "some titles are equal"


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_scores_can_be_divided_by_length(penalty, engine, qwen3, prompts):
    lengths = np.array([len(sequence) for sequence in SEQUENCES])
    whole = engine.rank_prompts(prompts, 60, Search(length_penalty=penalty))
    narrow = engine.rank_prompts(prompts, 4, Search(width=12, length_penalty=penalty))
    for user, prompt in enumerate(prompts):
        expected = score_titles(qwen3, SEQUENCES, prompt) / lengths**penalty
        assert whole.item_index[user].tolist() == rank_scores(expected, 60).tolist()
        np.testing.assert_allclose(
            whole.scores[user], np.sort(expected)[::-1], atol=1e-4, rtol=1e-4
        )
        missed = np.setdiff1d(np.arange(60), narrow.item_index[user])
        best = expected[missed].max()
        assert best <= max(narrow.bound[user], narrow.scores[user, -1]) + 1e-4
        if narrow.certified[user]:
            assert narrow.item_index[user].tolist() == rank_scores(expected, 4).tolist()


@pytest.mark.parametrize(("seed", "penalty"), [(0, 0.0), (1, 1.0), (2, 0.0)])
def test_an_exact_search_gives_the_true_list(seed, penalty, make_model, prompts):
    sequences = draw_titles(90, seed=seed, n_tokens=5, longest=7)
    sequences[7] = []
    model = make_model("qwen3", seed=seed)
    engine = TitleEngine(model, build_trie(sequences))
    search = Search(width=6, exact=True, length_penalty=penalty)
    ranked = engine.rank_prompts(prompts, 6, search)
    beam = engine.rank_prompts(prompts, 6, Search(width=6, length_penalty=penalty))
    assert ranked.certified.all() and (ranked.bound < ranked.scores[:, -1]).all()
    assert (ranked.evaluations >= beam.evaluations).all()
    for user, prompt in enumerate(prompts):
        lengths = np.array([max(len(row), 1) for row in sequences])
        expected = score_titles(model, sequences, prompt) / lengths**penalty
        assert ranked.item_index[user].tolist() == rank_scores(expected, 6).tolist()


def test_an_exact_search_that_runs_out_says_so(engine, prompts):
    beam = engine.rank_prompts(prompts, 3, Search(width=3))
    most = int(beam.evaluations.max()) + 1
    capped = Search(width=3, exact=True, max_evaluations=most)
    ranked = engine.rank_prompts(prompts, 3, capped)
    assert (ranked.evaluations <= most).all()
    assert not ranked.certified.all()
    assert (ranked.bound[~ranked.certified] >= ranked.scores[~ranked.certified, -1]).all()
    exact = engine.rank_prompts(prompts, 3, Search(width=3, exact=True))
    assert exact.certified.all()
    certain = ranked.certified
    np.testing.assert_array_equal(ranked.item_index[certain], exact.item_index[certain])


def test_an_exact_search_respects_filters(engine, qwen3, prompts):
    mask = np.arange(60) % 4 == 1
    filters = [ItemFilter(np.array([1, 5]), mask)] * len(prompts)
    ranked = engine.rank_prompts(prompts, 5, Search(width=5, exact=True), filters=filters)
    for user, prompt in enumerate(prompts):
        expected = score_titles(qwen3, SEQUENCES, prompt)
        expected[~mask] = expected[[1, 5]] = -np.inf
        assert ranked.item_index[user].tolist() == rank_scores(expected, 5).tolist()


def test_a_title_lives_while_one_of_its_items_does(qwen3, prompts):
    engine = TitleEngine(qwen3, build_trie([[7, END], [8, 9, END], [7, END], [7, END]]))
    free = engine.rank_prompts(prompts[:1], 4)
    assert len(set(free.scores[0].tolist())) == 2
    place = free.item_index[0].tolist()
    assert [item for item in place if item != 1] == [0, 2, 3]
    left = engine.rank_prompts(prompts[:1], 2, filters=exclude([[0, 3]]))
    assert set(left.item_index[0].tolist()) == {1, 2}
    gone = engine.rank_prompts(prompts[:1], 1, filters=exclude([[0, 2, 3]]))
    assert gone.item_index.tolist() == [[1]]


def test_one_token_titles_and_beginnings_of_others(qwen3, prompts):
    sequences = [[7, END], [7, 8, END], [7, 8, 9, END], [9, END]]
    engine = TitleEngine(qwen3, build_trie(sequences))
    ranked = engine.rank_prompts(prompts, 4)
    for user, prompt in enumerate(prompts):
        expected = score_titles(qwen3, sequences, prompt)
        assert ranked.item_index[user].tolist() == rank_scores(expected, 4).tolist()
    single = TitleEngine(qwen3, build_trie([[5, 6, 7, END]]))
    assert single.rank_prompts(prompts, 1).item_index.tolist() == [[0]] * len(prompts)


def test_search_stops_where_nothing_longer_can_win(qwen3, prompts):
    long = [9, *range(10, 60), END]
    engine = TitleEngine(qwen3, build_trie([[7, END], [8, END], long]))
    ranked = engine.rank_prompts(prompts, 2, Search(width=3))
    assert ranked.certified.all() and (ranked.bound > -np.inf).all()
    assert (ranked.evaluations < 20).all(), "51 levels would be walked for nothing"
    assert 2 not in ranked.item_index


def test_items_without_a_title_are_no_answers(qwen3, prompts):
    sequences = [[], [7, END], [], [8, 9, END], [8, END]]
    engine = TitleEngine(qwen3, build_trie(sequences))
    assert engine.n_items == 5
    ranked = engine.rank_prompts(prompts, 3, filters=exclude([[0]] * len(prompts)))
    assert (np.sort(ranked.item_index) == [1, 3, 4]).all()
    with pytest.raises(CapacityError, match=r"(?s)k=4 is more than.*prompt 0 has 3 legal items"):
        engine.rank_prompts(prompts, 4)
    shared = np.array([True, True, True, False, True])
    filters = [ItemFilter(np.array([1, 2]), shared), ItemFilter(allowed=shared)]
    padded = rank_filtered(engine, prompts[:2], filters, 4)
    assert padded.item_index[0].tolist() == [4, -1, -1, -1]
    assert sorted(padded.item_index[1].tolist()) == [-1, -1, 1, 4]


def test_a_uniform_model_answers_with_distinct_real_items(make_model):
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine = TitleEngine(model, build_trie(SEQUENCES))
    rng = np.random.default_rng(0)
    prompts = [[int(token)] for token in rng.integers(0, 300, 200)]
    banned = [rng.choice(60, int(size)) for size in rng.integers(0, 40, 200)]
    ranked = engine.rank_prompts(prompts, 15, Search(width=15), filters=exclude(banned))
    assert_valid(ranked, 60)
    for items, out in zip(ranked.item_index, banned, strict=True):
        assert not np.isin(items, out).any()


def test_half_precision_ranks_nearly_as_single(make_model, prompts):
    single = TitleEngine(make_model("llama"), build_trie(SEQUENCES)).rank_prompts(prompts, 60)
    half = TitleEngine(make_model("llama").to(torch.bfloat16), build_trie(SEQUENCES))
    ranked = half.rank_prompts(prompts, 60)
    for user in range(len(prompts)):
        scores = np.empty((2, 60))
        scores[0, single.item_index[user]] = single.scores[user]
        scores[1, ranked.item_index[user]] = ranked.scores[user]
        assert np.corrcoef(scores)[0, 1] > 0.98


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Search(normalize="level"), "normalize='level' compares the codes of one level"),
        (Search(groups=2), "groups=2: diverse lists are for codes"),
    ],
)
def test_what_titles_cannot_do_is_refused(engine, prompts, search, message):
    with pytest.raises(DecodeError, match=message):
        engine.rank_prompts(prompts, 3, search)


def test_exactness_needs_a_cache_that_can_go_back(make_model, prompts):
    engine = TitleEngine(make_model("bloom"), build_trie(SEQUENCES))
    assert engine.way is CopiedPromptCache
    with pytest.raises(DecodeError, match="BloomForCausalLM runs with a cache that only goes on"):
        engine.rank_prompts(prompts, 3, Search(exact=True))


def test_other_titles_share_the_weights(engine, prompts):
    other = engine.replace_trie(build_trie(SEQUENCES[:20]))
    fresh = TitleEngine(engine.model, build_trie(SEQUENCES[:20]), way=engine.way)
    found, expected = (each.rank_prompts(prompts, 5) for each in (other, fresh))
    np.testing.assert_array_equal(found.item_index, expected.item_index)
    assert other.n_items == 20 and engine.n_items == 60


def test_titles_of_another_tokenizer_or_too_long_are_refused(engine, qwen3):
    with pytest.raises(ModelError, match=r"token 300 is outside|titles hold token 300, .*300 rows"):
        TitleEngine(qwen3, build_trie([[300, END]]))
    with pytest.raises(ModelError, match=r"titles hold token 400, .* 300 rows"):
        engine.replace_trie(build_trie([[400, END]]))
    with pytest.raises(ModelError, match=r"takes 128 tokens, and the longest title alone has 130"):
        TitleEngine(qwen3, build_trie([[5] * 129 + [END]]))


def test_pairs_are_scored_like_the_whole_head(make_model):
    """Both ways, alone and as part of a product, for heads with a bias, a factor and a cap."""
    rng = np.random.default_rng(0)
    for architecture in ("phi", "granite", "gemma3"):
        engine = TitleEngine(make_model(architecture), build_trie(SEQUENCES))
        head = engine._head
        hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            whole = engine.model.get_output_embeddings()(hidden)
            for n_pairs in (3, 2000):
                row = torch.from_numpy(rng.integers(0, 9, n_pairs))
                token = torch.from_numpy(rng.integers(0, 300, n_pairs))
                found = head.pair_logits(hidden, row, token)
                wanted = head._shape_logits(whole[row, token].float(), None)
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_hundred_thousand_titles_are_searched(make_model):
    sequences = draw_titles(100_000, n_tokens=200, longest=12)
    engine = TitleEngine(make_model("qwen3"), build_trie(sequences))
    prompts = np.random.default_rng(1).integers(0, 200, (20, 30)).tolist()
    ranked = engine.rank_prompts(prompts, 20)
    assert_valid(ranked, 100_000)
    assert (ranked.evaluations <= 50 * 13).all()

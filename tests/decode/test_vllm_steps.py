"""Questions as requests for one token each, and answers as gains; the probe that they make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.engine import ItemFilter, Search
from genrec.decode.request import EngineLimits, check_request
from genrec.decode.search import search_items
from genrec.decode.trie import Trie
from genrec.decode.vllm_probe import check_probe, write_probe
from genrec.decode.vllm_steps import (
    Answer,
    StepRequest,
    StepWriter,
    find_answers,
    list_plain_params,
    list_plugin_params,
    list_whole_params,
    pack_tokens,
    unpack_tokens,
)
from genrec.errors import ModelError

V = 300


def say(sequence):
    """Made-up logits of the next token, a pure function of the sequence."""
    return np.random.default_rng(sequence).normal(size=V).astype(np.float32)


def score(request):
    """What an engine answers: log-probabilities by definition."""
    logits = say(request.prompt_token_ids).astype(np.float64)
    over = slice(None) if request.over is None else request.over
    return logits[request.wanted] - np.logaddexp.reduce(logits[over])


def run_dialogue(trie, token_ids, prompts, normalize, width, filters=None, adapters=None):
    limits = EngineLimits(trie.n_items, V)
    search = Search(width=width, normalize=normalize)
    request = check_request(limits, prompts, 3, search, filters)
    writer = StepWriter(request.prompts, token_ids, normalize, adapters)
    dialogue, asked = search_items(trie, request), []
    question = next(dialogue)
    while True:
        requests = writer.write_requests(question)
        asked.append((question, requests))
        gains = writer.read_gains(question, [score(one) for one in requests])
        assert gains.shape == question.code.shape and bool((gains <= 0).all())
        try:
            question = dialogue.send(gains)
        except StopIteration as end:
            return end.value, asked


@pytest.fixture(scope="module")
def trie(codes):
    return Trie.from_codes(codes)


@pytest.mark.parametrize("normalize", ["vocab", "level", "child"])
def test_every_answer_is_scored_by_its_own_sequence(trie, codes, token_ids, prompts, normalize):
    ranked, _ = run_dialogue(trie, token_ids, prompts, normalize, 20)
    for prompt, items, scores in zip(prompts, ranked.item_index, ranked.scores, strict=True):
        for item, found in zip(items, scores, strict=True):
            sequence, total = list(prompt), 0.0
            for level, code in enumerate(codes[item]):
                siblings = codes[(codes[:, :level] == codes[item, :level]).all(axis=1), level]
                tokens = {
                    "vocab": np.arange(V),
                    "level": token_ids[level],
                    "child": token_ids[level][np.unique(siblings)],
                }[normalize]
                logits = say(sequence).astype(np.float64)
                token = int(token_ids[level][code])
                total += logits[token] - np.logaddexp.reduce(logits[tokens])
                sequence.append(token)
            assert found == pytest.approx(total, abs=1e-5)


def test_requests_are_prefixes_with_their_legal_children(trie, codes, token_ids, prompts):
    banned = np.arange(0, len(codes), 2)
    filters = [ItemFilter(banned)] + [ItemFilter()] * (len(prompts) - 1)
    names = [None, "a", None, "b", "a"]
    _, asked = run_dialogue(trie, token_ids, prompts, "child", 6, filters, names)
    by_token = [{int(token): code for code, token in enumerate(level)} for level in token_ids]
    for question, requests in asked:
        assert len(requests) == np.count_nonzero(question.nodes >= 0)
        users = []
        for request in requests:
            (user,) = [
                row
                for row, prompt in enumerate(prompts)
                if request.prompt_token_ids[: len(prompt)] == prompt
                and len(request.prompt_token_ids) == len(prompt) + question.level
            ]
            users.append(user)
            assert request.adapter == names[user]
            prefix = [
                by_token[level][token]
                for level, token in enumerate(request.prompt_token_ids[len(prompts[user]) :])
            ]
            legal = np.delete(codes, banned, axis=0) if user == 0 else codes
            under = legal[(legal[:, : question.level] == prefix).all(axis=1), question.level]
            np.testing.assert_array_equal(
                np.sort(request.wanted), np.sort(token_ids[question.level][np.unique(under)])
            )
            np.testing.assert_array_equal(request.over, request.wanted)
        assert users == sorted(users)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_parts_hold_every_asked_token_once_and_relate_as_the_whole_does(data):
    n_over = data.draw(st.integers(1, 290))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    over = rng.permutation(V)[:n_over]
    wanted = rng.permutation(over)[: data.draw(st.integers(1, n_over))]
    request = StepRequest([1, 2], wanted, data.draw(st.sampled_from([None, over])))
    parts = request.list_parts()
    assert all(len(part) <= 128 for part in parts)
    assert [token for part in parts for token in part] == request.asked.tolist()
    raw = say([1, 2]).astype(np.float64)
    raw -= np.logaddexp.reduce(raw)
    np.testing.assert_allclose(request.relate(raw[request.asked]), score(request), atol=1e-9)


def test_tokens_without_any_probability_are_refused():
    request = StepRequest([1], np.array([3]), np.array([3, 4]))
    with pytest.raises(ModelError, match=r"the 2 tokens .* log-probability of -inf; .*float32"):
        request.relate(np.array([-np.inf, -np.inf]))


def test_answers_are_found_whatever_their_order():
    answer = Answer([7, 3, 9, 7], [-1.0, -2.0, -3.0, -1.0])
    np.testing.assert_array_equal(find_answers([9, 7, 3], answer), [-3.0, -1.0, -2.0])
    with pytest.raises(ModelError, match=r"no log-probability for 2 of 3 tokens, such as 4; every"):
        find_answers([3, 4, 10], answer)
    with pytest.raises(ModelError, match="for 1 of 1 tokens"):
        find_answers([3], Answer([], []))


def test_parameters_ask_for_one_token_and_no_text():
    request = StepRequest([1], np.array([3, 5]), np.array([3, 4, 5]), "a")
    params = list_plugin_params(request)
    assert params["logprobs"] == 2 and params["max_tokens"] == 1 and not params["detokenize"]
    assert unpack_tokens(params["extra_args"]["genrec_tokens"]).tolist() == [3, 5]
    assert unpack_tokens(params["extra_args"]["genrec_over"]).tolist() == [3, 4, 5]
    assert "genrec_over" not in StepRequest([1], np.array([3])).extra_args
    assert list_plain_params([3])["logprob_token_ids"] == [3]
    assert list_whole_params()["logprobs"] == -1
    assert pack_tokens(np.array([258])) == b"\x02\x01\x00\x00"


def probe(trie, token_ids):
    requests = write_probe(trie, token_ids)
    whole = [Answer(range(V), say(one.prompt_token_ids).tolist()) for one in requests]
    found = [Answer(one.wanted.tolist(), score(one).tolist()) for one in requests]
    return requests, found, whole


def test_the_probe_walks_down_to_an_item(trie, token_ids):
    requests, found, whole = probe(trie, token_ids)
    assert [len(one.prompt_token_ids) for one in requests] == [1, 1, 2, 2, 3, 3, 4, 4]
    check_probe(requests, found, whole, is_exact=True)
    doubled = [Answer([5, *a.token_ids], [a.values[5], *a.values]) for a in whole]
    check_probe(requests, found, doubled, is_exact=True)


def test_the_probe_refuses_what_the_trie_forbids(trie, token_ids):
    requests, found, whole = probe(trie, token_ids)
    impossible = Answer([7, *found[3].token_ids], [-np.inf, *found[3].values])
    check_probe(requests, [*found[:3], impossible, *found[4:]], whole, is_exact=True)
    forbidden = Answer([7, *found[3].token_ids], [-9.0, *found[3].values])
    with pytest.raises(ModelError, match=r"token 7, which the catalogue forbids.*open_vllm"):
        check_probe(requests, [*found[:3], forbidden, *found[4:]], whole, is_exact=True)


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_the_probe_refuses_other_scores(trie, token_ids, wrong):
    requests, found, whole = probe(trie, token_ids)
    other = Answer(found[0].token_ids, [value + wrong for value in found[0].values])
    with pytest.raises(ModelError, match=r"differ by .* from the model's own"):
        check_probe(requests, [other, *found[1:]], whole, is_exact=True)

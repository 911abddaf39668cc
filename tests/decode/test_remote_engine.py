"""The engine over HTTP: contract, equality, what it posts, what it tries again, what it refuses."""

from __future__ import annotations

import json

import httpx2
import numpy as np
import pytest

from genrec.decode.engine import Search
from genrec.decode.remote_engine import RemoteEngine, RemotePace, pack_posts, read_choice
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.trie import Trie
from genrec.decode.vllm_items import VllmItems
from genrec.decode.vllm_steps import StepRequest
from genrec.errors import ModelError
from tests.contracts.engine_contract import EVERY_NORMALIZE, EngineContract
from tests.decode.fake_server import FakeServer, serve_app

AT_ONCE = RemotePace(timeout_seconds=5, tries=3, first_pause_seconds=0.001)
URL = "http://gpu-1:8000"


@pytest.fixture(scope="module")
def items(qwen3, codes, token_ids):
    return VllmItems(Trie.from_codes(codes), token_ids, qwen3.config.vocab_size, 16)


@pytest.fixture(scope="module")
def server(qwen3, make_model):
    return FakeServer(qwen3, {"books": make_model("qwen3", seed=7)})


@pytest.fixture(scope="module")
def url(server):
    with serve_app(server.build_app()) as url:
        yield url


@pytest.fixture
def engine(url, items):
    engine = RemoteEngine(url, items, pace=AT_ONCE)
    yield engine
    engine.close()


class TestRemoteEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, url, items):
        engine = RemoteEngine(f"{url}/v1/", items, pace=AT_ONCE)
        yield engine
        engine.close()


@EVERY_NORMALIZE
def test_equals_the_embedded_engine(engine, qwen3, items, token_ids, prompts, normalize):
    search = Search(width=20, normalize=normalize)
    ours = engine.rank_prompts(prompts, 10, search)
    theirs = TorchEngine(qwen3, items.trie, token_ids).rank_prompts(prompts, 10, search)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_array_equal(ours.evaluations, theirs.evaluations)


def test_an_adapter_and_other_items(engine, server, items, token_ids, prompts):
    trie = items.trie.remove([0, 2])
    other = engine.replace_trie(trie)
    ours = other.rank_prompts(prompts, 5, adapter="books")
    theirs = TorchEngine(server.models["books"], trie, token_ids).rank_prompts(prompts, 5)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    assert engine.adapters == ("books",) and engine.block_tokens == 16
    assert other.codebook_sizes == engine.codebook_sizes and other.trie is trie
    with pytest.raises(ModelError, match="unknown adapter 'book'; did you mean 'books'"):
        engine.rank_prompts(prompts, 5, adapter="book")


def test_more_users_than_are_asked_about_together(engine, prompts):
    many = (prompts * 10)[:37]
    np.testing.assert_array_equal(
        engine.rank_prompts(many, 3).item_index[32:],
        engine.rank_prompts(many[32:], 3).item_index,
    )


def test_beams_share_posts_as_long_as_their_tokens_fit(engine, server, prompts):
    server.posts.clear()
    ranked = engine.rank_prompts(prompts[:1], 5, Search(width=20))
    assert len(server.posts) == 4, "a level of 8 codes fits into one post"
    assert sum(len(post["prompt"]) for post in server.posts) == ranked.evaluations.sum()


def test_posts_hold_128_tokens_and_64_prompts_of_one_adapter():
    def ask(first, last, adapter=None):
        return StepRequest([1], np.arange(first, last), adapter=adapter)

    posts = pack_posts([ask(0, 300), ask(290, 300), ask(290, 300, "a"), *[ask(0, 5, "a")] * 70])
    assert [(len(p.tokens), len(p.prompts), p.adapter) for p in posts] == [
        (128, 1, None), (128, 1, None), (44, 2, None), (15, 64, "a"), (5, 7, "a"),
    ]  # fmt: skip
    assert posts[2].places == [(0, 2), (1, 0)]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(engine, server, prompts, status, caplog):
    server.faults = [status, status]
    ranked = engine.rank_prompts(prompts[:1], 5)
    assert ranked.item_index.shape == (1, 5)
    assert f"HTTP {status}" in caplog.text and "trying again" in caplog.text


def test_what_does_not_pass_is_said(engine, server, prompts):
    server.faults = [503] * 3
    with pytest.raises(ModelError, match="did not answer in 3 tries, the last with HTTP 503"):
        engine.rank_prompts(prompts[:1], 5)
    server.faults = [400]
    with pytest.raises(ModelError, match=r"refused a request .HTTP 400: .*not now"):
        engine.rank_prompts(prompts[:1], 5)


def test_a_server_may_say_how_long_to_wait(engine, server, prompts, monkeypatch):
    waits = []
    monkeypatch.setattr("genrec.decode.remote_engine.time.sleep", waits.append)
    server.faults, server.retry_after = [429, 503], "3"
    engine.rank_prompts(prompts[:1], 5)
    server.faults, server.retry_after = [429], "99"
    engine.rank_prompts(prompts[:1], 5)
    server.retry_after = None
    assert waits == [3, 3, 5], "never longer than the timeout"


def test_a_key_and_a_name(url, items, server):
    server.key = "secret"
    with pytest.raises(ModelError, match="HTTP 401"):
        RemoteEngine(url, items, pace=AT_ONCE)
    RemoteEngine(url, items, "books", api_key="secret", pace=AT_ONCE).close()
    with pytest.raises(ModelError, match="has no model 'tinny'; did you mean 'tiny'"):
        RemoteEngine(url, items, "tinny", api_key="secret", pace=AT_ONCE)
    server.key = None


def test_nobody_listens(items):
    with pytest.raises(ModelError, match=r"did not answer in 3 tries.*ConnectError"):
        RemoteEngine("http://127.0.0.1:1", items, pace=AT_ONCE)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("processed_logprobs", "change with the tokens that may be sampled"),
        ("raw_logits", "have log-probabilities up to"),
    ],
)
def test_values_that_are_not_log_probabilities(url, items, server, mode, message):
    server.mode = mode
    with pytest.raises(ModelError, match=f"--logprobs-mode raw_logprobs: . problems?\n.*{message}"):
        RemoteEngine(url, items, pace=AT_ONCE)
    server.mode = "raw_logprobs"


MODELS = {"data": [{"id": "tiny", "max_model_len": 128}]}


@pytest.mark.parametrize(
    ("models", "completion", "message"),
    [
        ("<html>", {}, "gave something that is not JSON .'<html>'.; is it a vLLM server"),
        ({"data": []}, {}, "lists no model with its max_model_len"),
        ({"data": [{"id": "gpt"}]}, {}, "lists no model with its max_model_len"),
        (MODELS, {"choices": [{"index": 0, "logprobs": None}]}, "without the log-probabilities"),
        (MODELS, {"choices": []}, "gave 0 answers to 1 prompts"),
    ],
)
def test_servers_of_other_kinds(items, models, completion, message):
    def reply(request: httpx2.Request) -> httpx2.Response:
        said = models if request.url.path == "/v1/models" else completion
        text = said if isinstance(said, str) else json.dumps(said)
        return httpx2.Response(200, text=text)

    with pytest.raises(ModelError, match=message):
        RemoteEngine(URL, items, pace=AT_ONCE, transport=httpx2.MockTransport(reply))


def test_values_that_json_cannot_hold():
    def choose(**said):
        return {"logprobs": {"top_logprobs": [said]}}

    answer = read_choice(choose(**{"token_id:5": -9999.0, "token_id:7": -1.5}))
    assert answer.token_ids == [5, 7] and answer.values == [-np.inf, -1.5]
    with pytest.raises(ValueError, match="not finite"):
        read_choice(choose(**{"token_id:5": float("nan")}))
    with pytest.raises(ValueError, match="' the'"):
        read_choice(choose(**{" the": -1.0}))

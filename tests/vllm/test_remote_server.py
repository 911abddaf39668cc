"""The engine over HTTP against vLLM's own server, without anything of genrec in it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from genrec.decode.engine import Search
from genrec.decode.remote_engine import RemoteEngine
from genrec.decode.torch_engine import TorchEngine
from genrec.decode.vllm_items import VllmItems
from tests.contracts.engine_contract import EVERY_NORMALIZE
from tests.vllm.small_model import (
    NEEDS_VLLM,
    SETTINGS,
    TOKEN_IDS,
    VOCABULARY,
    load_model,
    make_prompts,
    make_trie,
)

pytestmark = NEEDS_VLLM
PROMPTS = make_prompts(9, 64, 70, 1, 200, 192)
START_SECONDS = 300


def build_environment():
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    settings = SETTINGS | {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1"}
    del settings["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return os.environ | settings


@pytest.fixture(scope="module")
def url(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder / "model",
        "--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1",
        "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "256",
        "--num-gpu-blocks-override", "512", "--generation-config", "vllm",
        "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"books={folder / 'books'}",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(list(map(str, command)), env=build_environment()) as server:
        try:
            wait_until_up(url, server)
            yield url
        finally:
            server.terminate()


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx2.get(f"{url}/health").is_success:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    raise AssertionError("vLLM's server did not start")


@pytest.fixture(scope="module")
def engine(url):
    engine = RemoteEngine(url, VllmItems(make_trie(), TOKEN_IDS, VOCABULARY))
    yield engine
    engine.close()


@EVERY_NORMALIZE
def test_equals_the_embedded_engine(engine, folder, normalize):
    search = Search(width=20, normalize=normalize)
    plain = TorchEngine(load_model(folder / "model"), make_trie(), TOKEN_IDS)
    ours, theirs = (one.rank_prompts(PROMPTS, 20, search) for one in (engine, plain))
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
    np.testing.assert_array_equal(ours.evaluations, theirs.evaluations)


def test_an_adapter_of_the_server(engine, folder):
    merged = TorchEngine(load_model(folder / "model", folder / "books"), make_trie(), TOKEN_IDS)
    ours = engine.rank_prompts(PROMPTS, 10, adapter="books")
    theirs = merged.rank_prompts(PROMPTS, 10)
    assert engine.adapters == ("books",)
    np.testing.assert_array_equal(ours.item_index, theirs.item_index)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


def test_its_beam_search_answers_with_forbidden_tokens_and_says_200(url):
    """The trap that makes a search of our own necessary, over HTTP."""
    allowed = TOKEN_IDS[0].tolist()
    body = {
        "model": "tiny", "prompt": PROMPTS[0], "max_tokens": 1, "use_beam_search": True, "n": 4,
        "allowed_token_ids": allowed, "return_token_ids": True, "temperature": 0.0,
    }  # fmt: skip
    answer = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200
    given = {choice["token_ids"][0] for choice in answer.json()["choices"]}
    assert not given <= set(allowed)


def test_vllm_serve_does_not_start_with_the_cpu_wheel(folder):
    """Why docs/vllm.md starts the server as a module; told here if a later wheel can."""
    command = [Path(sys.executable).with_name("vllm"), "serve", folder / "model"]
    ended = subprocess.run(
        command, env=build_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode != 0 and "Traceback" in ended.stderr


def test_asking_from_a_running_loop(engine):
    """Its connections are its own threads', so that it can be used anywhere."""

    async def ask():
        return await asyncio.to_thread(engine.rank_prompts, PROMPTS[:1], 5)

    assert asyncio.run(ask()).item_index.shape == (1, 5)

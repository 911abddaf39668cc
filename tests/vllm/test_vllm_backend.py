"""The server's vLLM backend on a real vLLM: the same answers, adapters, texts, and kill -9."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

from genrec.artifact import load_artifact
from genrec.decode.writer import Writer
from genrec.opening import ModelChoice
from genrec.pipeline import parse_chain, run_chain
from genrec.recommender import Recommender
from genrec.serve.backend import BackendDownError, Edition, RankJob, TextJob
from genrec.serve.metrics import ServeMetrics
from genrec.serve.settings import ServeSettings
from genrec.serve.vllm_model import build_vllm_backend
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from tests.vllm.small_model import NEEDS_VLLM, SETTINGS

pytestmark = NEEDS_VLLM
SMALL = {"max_model_len": 256, "num_gpu_blocks_override": 512}
START_SECONDS = 300
CHAIN = {
    "seed": 3,
    "data": {"source": "synthetic", "n_items": 60, "n_users": 40},
    "embed": {"lsa": {"dimensions": 16}},
    "tokenize": {"quantizer": "rqkmeans", "codebook_sizes": [8, 8, 8]},
    "prompts": {"use": "small-decoder"},
    # Heads of 32, the least that vLLM's CPU attention takes.
    "base": {
        "hidden_size": 128, "layers": 1, "heads": 4, "kv_heads": 2, "feed_forward_size": 96,
        "vocab_size": 400, "epochs": 0.2,
    },
    "train": {"use": "tiny", "max_steps": 10, "export_base": True, "align": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a base of its own, and an adapter over that."""
    out = tmp_path_factory.mktemp("served") / "run"
    run_chain(parse_chain(CHAIN, source="test"), out)
    recipe = TrainRecipe(
        rank=4, alpha=8, dropout=0.0, learning_rate=0.02, batch_size=16, max_steps=20, seed=9,
        eval_every=0.0, token_rows="frozen", precision="fp32", align=32,
    )  # fmt: skip
    parts = (out / name for name in ("instructions", "tokenizer", "data"))
    make_model(recipe, out / "model", *parts, out / "books")
    load_artifact(out / "books", step="train")
    return out


@pytest.fixture(scope="module")
def served(folder, runner):
    recommender, backend = build_vllm_backend(
        ModelChoice(folder / "model", "vllm"),
        ServeSettings(),
        ServeMetrics(),
        {"books": folder / "books"},
        SMALL,
    )
    runner.run(backend.start())
    yield Edition(1, recommender), backend
    runner.run(backend.stop(5))


async def run_together(*asked, **words):
    return await asyncio.gather(*asked, **words)


def make_jobs(edition, names):
    recommender = edition.recommender
    histories = [np.arange(1 + row, 4 + row) for row in range(len(names))]
    prompts = recommender.encode_prompts(histories, [""] * len(names))
    return histories, [
        RankJob(edition, tuple(prompt), 10, adapter=name)
        for prompt, name in zip(prompts, names, strict=True)
    ]


def test_answers_are_those_of_the_embedded_engine(runner, served, folder):
    """Of the model as trained, which is its base and its own adapter, and of another adapter."""
    edition, backend = served
    assert backend.state == "ready" and backend.adapters == ("books",)
    names = [None, "books", None, "books", "books", None]
    histories, jobs = make_jobs(edition, names)
    assert {len(job.prompt) % 32 for job in jobs} == {0}, "trained with align: 32"
    found = runner.run(run_together(*[backend.rank(job) for job in jobs]))
    plain = {
        name: Recommender.from_pretrained(folder / path, device="cpu")
        for name, path in ((None, "model"), ("books", "books"))
    }
    for history, name, ranked in zip(histories, names, found, strict=True):
        wanted = plain[name].rank_items([history], 10, exclude_seen=False)
        np.testing.assert_array_equal(ranked.item_index, wanted.item_index)
        np.testing.assert_allclose(ranked.scores, wanted.scores, atol=1e-3)
    both = [one.rank_items(histories[:1], 10).scores for one in plain.values()]
    assert np.abs(both[0] - both[1]).max() > 0.01, "the adapter changes something"


def test_texts_are_those_of_the_embedded_engine(runner, served, folder):
    _, backend = served
    plain = Recommender.from_pretrained(folder / "model", device="cpu")
    job = TextJob(tuple(plain.tokenizer.encode("The user chose", add_special_tokens=False)), 12)
    writer = Writer(plain.engine.model, plain.tokenizer, plain.chat)
    writer.add(job)
    wanted = []
    while not writer.is_idle:
        wanted += [part for _, part in writer.step()]

    async def read():
        return [part async for part in backend.write(job)]

    found = runner.run(read())
    assert "".join(p.text for p in found) == "".join(p.text for p in wanted)
    assert sum(p.n_tokens for p in found) == sum(p.n_tokens for p in wanted)
    assert found[-1].finish == wanted[-1].finish


def test_an_engine_that_is_killed_is_replaced(runner, served, caplog):
    edition, backend = served
    _, jobs = make_jobs(edition, [None] * 40)
    before = runner.run(backend.rank(jobs[0]))

    async def kill():
        llm = backend._engine._llm
        asked = [asyncio.create_task(backend.rank(job)) for job in jobs]
        while not llm.get_num_unfinished_requests():
            await asyncio.sleep(0.001)
        for process in llm.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGKILL)
        faults = await asyncio.wait_for(run_together(*asked, return_exceptions=True), 60)
        assert {type(fault) for fault in faults} <= {BackendDownError, type(before)}
        assert BackendDownError in {type(fault) for fault in faults}
        async with asyncio.timeout(START_SECONDS):
            while backend.state != "ready" or backend._engine._llm is llm:
                assert backend.state in {"ready", "restarting"}
                await asyncio.sleep(0.05)
        return await backend.rank(jobs[0])

    after = runner.run(kill())
    np.testing.assert_array_equal(after.item_index, before.item_index)
    assert "requests get 503 until another one is up" in caplog.text
    assert "another vLLM engine is up" in caplog.text


def test_the_command_serves_survives_a_kill_and_drains(folder):
    """`genrec serve --engine vllm` as anyone starts it."""
    command = [
        sys.executable, "-m", "genrec", "serve", folder / "model", "--engine", "vllm", "--port",
        "0", *(f"--vllm-arg={name}={value}" for name, value in SMALL.items()),
    ]  # fmt: skip
    environment = os.environ | SETTINGS
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    log = Path(folder / "serve.log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            url = re.search(r"http://[\d.:]+", first).group()  # type: ignore[union-attr]
            assert httpx2.get(f"{url}/healthz").is_success
            wait_for_state(url, "ready", server)
            body = {"history": [{"item_id": item} for item in list_items(folder)[:3]], "k": 5}
            before = recommend(url, body)
            for child in psutil.Process(server.pid).children(recursive=True):
                if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
                    child.kill()
            wait_for_state(url, "restarting", server)
            assert httpx2.post(f"{url}/v1/recommendations", json=body).status_code == 503
            wait_for_state(url, "ready", server)
            assert recommend(url, body) == before
            children = psutil.Process(server.pid).children(recursive=True)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            assert not psutil.wait_procs(children, timeout=10)[1], "nothing is left behind"
        finally:
            server.kill()
    assert "requests get 503 until another one is up" in log.read_text()


def list_items(folder):
    return Recommender.from_pretrained(folder / "model", engine="items").item_ids


def recommend(url, body):
    answer = httpx2.post(f"{url}/v1/recommendations", json=body, timeout=60)
    assert answer.is_success, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def wait_for_state(url: str, state: str, server: subprocess.Popen[str]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if httpx2.get(f"{url}/readyz").json()["state"] == state:
            return
        time.sleep(0.05)
    raise AssertionError(f"the server is not {state}")

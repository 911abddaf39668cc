"""What tests on a real vLLM share: a small model with adapters, and one event loop."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.small_model import SETTINGS, write_adapter, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `model`, and the adapters `books` and `games` over it."""
    folder = tmp_path_factory.mktemp("vllm")
    write_model(folder / "model")
    for seed, name in ((1, "books"), (2, "games")):
        write_adapter(folder / "model", folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests, with vLLM's settings for a small machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
        with asyncio.Runner() as runner:
            yield runner
        gc.collect()  # vLLM's objects end with warnings where the interpreter ends them

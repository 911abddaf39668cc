"""genrec's vLLM engine against vLLM's own beam search, and against the least it could take.

Owns the section `vllm` and its rows. vLLM keeps its memory, its threads and its settings for as
long as a process lives, so the section runs in one of its own: `python -m genrec.bench.vllm_decode`
writes the rows to the file it is given.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.bench.decode_models import LEVELS, Setup, build_setup, build_small
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_rivals import find_items
from genrec.bench.decode_timing import Timing, time_watched
from genrec.bench.rows import BenchRow, build_row
from genrec.bench.train_model import TINY
from genrec.decode.engine import Search
from genrec.decode.vllm_engine import VllmEngine
from genrec.decode.vllm_open import open_vllm
from genrec.errors import MissingExtraError, ModelError
from genrec.train.corpus import train_tokenizer
from genrec.types import IndexArray, RankedItems

BATCHES = (1, 8)
ARBITRARY, ALIGNED = 200, 192
TARGETS = {ARBITRARY: 2.0, ALIGNED: 1.0}
"""Times faster than vLLM's own beam search, by prompt length; blocks have 32 tokens on CPU."""
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
_RIVAL, _LEAST = "vLLM's own beam search", "a prefill and three steps"
_AS_IS, _DROPPED = "genrec on vLLM", "genrec on vLLM, oldest tokens dropped to the block"


def has_vllm() -> bool:
    """Whether vLLM can be imported here."""
    return importlib.util.find_spec("vllm") is not None


def bench_vllm(options: DecodeBench) -> list[BenchRow]:
    """The rows, measured in another process.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: the other process failed.
    """
    if not has_vllm():
        raise MissingExtraError("vllm", "vllm")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(target), json.dumps(_write_options(options))],
            env=_SETTINGS | os.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = "\n".join(done.stderr.splitlines()[-10:])
            raise ModelError(
                f"the section vllm stopped with exit status {done.returncode}; what it said last:\n"
                f"{said}"
            )
        return [BenchRow(**row) for row in json.loads(target.read_text(encoding="utf-8"))]


def _write_options(options: DecodeBench) -> dict[str, Any]:
    return {"quick": options.quick, "repeats": options.repeats}


def measure(options: DecodeBench) -> list[BenchRow]:
    """The rows, measured in this process."""
    setup = _build_model(options)
    with tempfile.TemporaryDirectory() as folder:
        setup.model.save_pretrained(folder)
        # vLLM's beam search writes its answers as text, whatever is asked of it.
        texts = [f"item {number} is {number * 7 % 31} of its kind" for number in range(100)]
        train_tokenizer(texts, (), 320).save_pretrained(folder)
        llm = open_vllm(folder, max_model_len=256)
        engine = VllmEngine(llm, setup.engine.trie, setup.token_ids)
        rows = []
        for n_tokens in (ARBITRARY, ALIGNED):
            for n_prompts in BATCHES:
                rows += _compare(setup, llm, engine, n_prompts, n_tokens, options)
        llm.llm_engine.engine_core.shutdown()
    return rows


def _build_model(options: DecodeBench) -> Setup:
    if not options.quick:
        return build_small(options)
    # vLLM's CPU attention takes heads of 32 and more (0.32).
    shape = TINY | {"head_dim": 32}
    return build_setup("hidden 32", shape, options.sizes, n_words=320)


def _compare(
    setup: Setup,
    llm: Any,
    engine: VllmEngine,
    n_prompts: int,
    n_tokens: int,
    options: DecodeBench,
) -> list[BenchRow]:
    width = setup.sizes.width
    drawn = np.random.default_rng(0).integers(10, 300, (n_prompts, n_tokens))
    n_dropped = n_tokens % engine.block_tokens
    whole = drawn[:, n_dropped:]
    ways: dict[str, Callable[[], Any]] = {
        _RIVAL: partial(_search_freely, llm, drawn, width),
        _AS_IS: partial(engine.rank_prompts, drawn.tolist(), width, Search(width)),
        _LEAST: partial(_run_steps, llm, whole, width),
    }
    if n_dropped:
        ways[_DROPPED] = partial(engine.rank_prompts, whole.tolist(), width, Search(width))
    # What one run has left in the prefix cache would serve the next.
    rivals = {name: partial(_run_afresh, llm, run) for name, run in ways.items()}
    timing = time_watched(rivals, options.repeats)
    where = f"vLLM, {setup.name}, {n_prompts} x {n_tokens} tokens, width {width}"
    return [
        *_describe(timing, where, options.target(TARGETS[n_tokens])),
        *_describe_valid(setup, ways[_RIVAL](), ways[_AS_IS](), where),
        *timing.describe_others(where),
    ]


def _describe(timing: Timing, where: str, target: float | None) -> list[BenchRow]:
    rows = [build_row(f"{where}: {_RIVAL}", timing.median(_RIVAL), "seconds")]
    best = _DROPPED if _DROPPED in timing.seconds else _AS_IS
    for name in (_AS_IS, _DROPPED):
        if name not in timing.seconds:
            continue
        rows.append(
            build_row(
                f"{where}: {name}",
                timing.compare(_RIVAL, name),
                "times faster",
                least=target if name == best else None,
                against=f"{_RIVAL}, unconstrained",
            )
        )
        rows.append(
            build_row(
                f"{where}: {name}",
                timing.compare(name, _LEAST),
                "times the time",
                against=f"{_LEAST}, {timing.median(_LEAST):.3g} seconds",
            )
        )
    return rows


def _describe_valid(setup: Setup, free: IndexArray, own: RankedItems, where: str) -> list[BenchRow]:
    """How many answers are items: of tokens (n, 4) and of ours."""
    theirs = np.array(find_items(setup, torch.from_numpy(free))) >= 0
    ours = (own.item_index >= 0) & (own.item_index < len(setup.codes))
    return [
        build_row(f"{where}: {_RIVAL}, answers that are items", float(theirs.mean()), "share"),
        build_row(
            f"{where}: {_AS_IS}, answers that are items", float(ours.mean()), "share", least=1
        ),
    ]


def _run_afresh(llm: Any, run: Callable[[], object]) -> None:
    llm.reset_prefix_cache()
    run()


def _search_freely(llm: Any, prompts: IndexArray, width: int) -> IndexArray:
    from vllm.sampling_params import BeamSearchParams

    params = BeamSearchParams(beam_width=width, max_tokens=LEVELS, ignore_eos=True)
    asked = [{"prompt_token_ids": row} for row in prompts.tolist()]
    outputs = llm.beam_search(asked, params)
    beams = [beam.tokens[-LEVELS:] for output in outputs for beam in output.sequences]
    return np.array(beams, dtype=np.int64)


def _run_steps(llm: Any, prompts: IndexArray, width: int) -> None:
    """What any search waits for: each prompt once, then a first token and two more of every beam.

    Prompts are of whole blocks, so that beams read nothing of them again.
    """
    from vllm import SamplingParams

    shared = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
    asked = [{"prompt_token_ids": row} for row in prompts.tolist()]
    llm.generate(asked, SamplingParams(max_tokens=1, **shared), use_tqdm=False)
    beams = [
        {"prompt_token_ids": [*row, 10 + beam]} for row in prompts.tolist() for beam in range(width)
    ]
    llm.generate(beams, SamplingParams(max_tokens=LEVELS - 1, **shared), use_tqdm=False)


def main(arguments: list[str]) -> None:
    """Measure, and write the rows to a file.

    Args:
        arguments: the file, and options as JSON.
    """
    target, options = arguments
    rows = measure(DecodeBench(**json.loads(options)))
    Path(target).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

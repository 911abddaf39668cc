"""What beams miss, and what it costs to know: recall against exact search.

Owns the section `exact` and its rows. A model with random weights is nearly sure of nothing, so its
logits are sharpened to what trained models show; a trained model can be given as well.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from genrec.bench.decode_models import Setup, build_small
from genrec.bench.decode_options import DecodeBench
from genrec.bench.rows import BenchRow, build_row
from genrec.decode.engine import Engine, Normalize, Search
from genrec.decode.request import default_width
from genrec.recommender import Recommender
from genrec.types import RankedItems

# Standard deviation of the logits of a level's codes: a code in three is a guess, or one in thirty.
SPREADS = (3.0, 1.5)
_N_PROMPTS, _QUICK_PROMPTS = 40, 3


def bench_exact(options: DecodeBench) -> list[BenchRow]:
    """Beams of width k and of the default against exact search, on made-up and trained models."""
    n_prompts = _QUICK_PROMPTS if options.quick else _N_PROMPTS
    setup = build_small(options)
    k = setup.sizes.width
    prompts = setup.draw_prompts(n_prompts).tolist()
    rows = []
    spread = _measure_spread(setup, prompts[:8])
    for wanted in SPREADS:
        with torch.no_grad():
            setup.model.model.norm.weight.mul_(wanted / spread)
        spread = wanted
        # Relative to the legal codes: training makes text, and codes of no item, unlikely.
        where = (
            f"{setup.name}, random weights, logits of a level spread by {wanted}, "
            f"{n_prompts} x {setup.sizes.n_tokens} tokens, top {k}, child"
        )
        rows += _compare_widths(setup.engine, prompts, k, "child", where)
    if options.model is not None:
        opened = Recommender.from_pretrained(options.model, device="cpu")
        k = min(k, opened.n_items)
        made = opened.make_up_prompts(n_prompts)
        where = (
            f"{options.model.name}, {opened.n_items:,} items, {n_prompts} random histories of "
            f"{min(map(len, made))} to {max(map(len, made))} tokens, top {k}, vocab"
        )
        rows += _compare_widths(opened.engine, made, k, "vocab", where)
    return rows


def _measure_spread(setup: Setup, prompts: list[list[int]]) -> float:
    with torch.inference_mode():
        logits = setup.model(torch.tensor(prompts), logits_to_keep=1).logits[:, -1]
    return float(logits[:, torch.from_numpy(setup.token_ids[0])].std(dim=1).mean())


def _compare_widths(
    engine: Engine, prompts: list[list[int]], k: int, mode: Normalize, where: str
) -> list[BenchRow]:
    exact, seconds = _run(engine, prompts, k, Search(normalize=mode, exact=True))
    known = exact.certified
    assert exact.evaluations is not None, "engines that search count"
    rows = [
        build_row(f"{where}: exact, certified", float(known.mean()), "share"),
        build_row(f"{where}: exact", float(exact.evaluations.mean()), "evaluations a prompt"),
        build_row(f"{where}: exact", seconds / len(prompts), "seconds a prompt"),
    ]
    for width in sorted({k, default_width(k, engine.n_items)}):
        beams, seconds = _run(engine, prompts, k, Search(width, mode))
        assert beams.evaluations is not None, "engines that search count"
        name = f"{where}: width {width}"
        rows += [
            build_row(f"{name}, certified", float(beams.certified.mean()), "share"),
            build_row(f"{name}", float(beams.evaluations.mean()), "evaluations a prompt"),
            build_row(f"{name}", seconds / len(prompts), "seconds a prompt"),
        ]
        if known.any():
            found = [
                len(np.intersect1d(mine, true)) / k
                for mine, true in zip(beams.item_index[known], exact.item_index[known], strict=True)
            ]
            share = float(np.mean(found))
            rows.append(build_row(f"{name}, recall", share, "share", against="certified exact"))
    return rows


def _run(
    engine: Engine, prompts: list[list[int]], k: int, search: Search
) -> tuple[RankedItems, float]:
    started = time.perf_counter()
    ranked = engine.rank_prompts(prompts, k, search)
    return ranked, time.perf_counter() - started

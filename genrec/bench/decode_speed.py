"""The embedded engine against Hugging Face and against its own matrix products.

Owns the sections `small` and `qwen` and their rows. Absolute times depend on the machine; the
ratios are the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from genrec.bench.decode_models import Setup, build_qwen, build_small
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_rivals import (
    build_allowed,
    generate,
    list_products,
    run_products,
    search_copies,
)
from genrec.bench.decode_timing import Timing, time_watched
from genrec.bench.rows import BenchRow, build_row
from genrec.decode.engine import Normalize, Search

BATCHES = (1, 8)
Targets = Mapping[tuple[str, int], float]
# Times faster than Hugging Face constrained on 2 cores, prompt 200, width 20, by prompts.
SMALL_TARGETS: Targets = {
    ("level", 1): 14.0, ("vocab", 1): 6.0, ("level", 8): 25.0, ("vocab", 8): 14.0,
}  # fmt: skip
QWEN_TARGETS: Targets = {
    ("level", 1): 14.0, ("vocab", 1): 12.0,
    ("loop level", 1): 1.5, ("loop vocab", 1): 1.5,
    ("floor level", 1): 1.25, ("floor vocab", 1): 1.25,
}  # fmt: skip
_MODES: tuple[Normalize, ...] = ("level", "vocab")
_GENERATES = ("Hugging Face constrained", "Hugging Face unconstrained")
_KINDS = ("", "loop ", "floor ")  # of targets
_LOOP = "loop that runs the prompt once and copies its cache"


def bench_small(options: DecodeBench) -> list[BenchRow]:
    """All ways on a small model, where what surrounds the products weighs most."""
    return _compare_ways(build_small(options), options, SMALL_TARGETS, is_slow=False)


def bench_qwen(options: DecodeBench) -> list[BenchRow]:
    """All ways on Qwen3-0.6B's shape; `generate` takes a minute and more, and runs once."""
    return _compare_ways(build_qwen(options), options, QWEN_TARGETS, is_slow=not options.quick)


def _compare_ways(
    setup: Setup, options: DecodeBench, targets: Targets, *, is_slow: bool
) -> list[BenchRow]:
    allowed = build_allowed(setup)
    rows = []
    for n_prompts in BATCHES:
        prompts = setup.draw_prompts(n_prompts)
        constrained, free = _GENERATES
        generates: dict[str, Callable[[], object]] = {
            constrained: partial(generate, setup, prompts, allowed),
            free: partial(generate, setup, prompts, None),
        }
        if is_slow and n_prompts > 1:
            del generates[free]  # it differs from the constrained by the trie alone
        rivals: dict[str, Callable[[], object]] = {
            _LOOP: partial(search_copies, setup, prompts, allowed),
            **{mode: _make_search(setup, prompts.tolist(), mode) for mode in _MODES},
            **{
                f"floor {mode}": partial(
                    run_products, list_products(setup, n_prompts, vocab=mode == "vocab")
                )
                for mode in _MODES
            },
        }
        if is_slow:
            timing = time_watched(rivals, options.repeats, generates)
        else:
            timing = time_watched(generates | rivals, options.repeats)
        where = f"{setup.name}, {setup.sizes.describe(n_prompts)}"
        rows += _describe(timing, where, n_prompts, options, targets)
    return rows


def _make_search(
    setup: Setup, prompts: Sequence[Sequence[int]], mode: Normalize
) -> Callable[[], object]:
    width = setup.sizes.width
    return partial(setup.engine.rank_prompts, prompts, width, Search(width, mode))


def _describe(
    timing: Timing, where: str, n_prompts: int, options: DecodeBench, targets: Targets
) -> list[BenchRow]:
    constrained, free = _GENERATES
    rows = [build_row(f"{where}: {constrained}, dict trie", timing.median(constrained), "seconds")]
    for name in (free, _LOOP):
        if name in timing.seconds:
            faster = timing.compare(constrained, name)
            rows.append(build_row(f"{where}: {name}", faster, "times faster", against=constrained))
    for mode in _MODES:
        wanted = (options.target(targets.get((f"{kind}{mode}", n_prompts))) for kind in _KINDS)
        faster_target, loop_target, floor_target = wanted
        engine = f"{where}: engine {mode}"
        rows += [
            build_row(f"{engine}", timing.median(mode), "seconds"),
            build_row(
                engine,
                timing.compare(constrained, mode),
                "times faster",
                least=faster_target,
                against=f"{constrained}, dict trie",
            ),
            build_row(
                engine,
                timing.compare(_LOOP, mode),
                "times faster",
                least=loop_target,
                against=_LOOP,
            ),
            build_row(
                engine,
                timing.compare(mode, f"floor {mode}"),
                "times the time",
                most=floor_target,
                against=f"its matrix products alone, {timing.median(f'floor {mode}'):.3g} seconds",
            ),
        ]
    return rows + timing.describe_others(where)

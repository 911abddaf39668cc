"""What a larger catalogue costs: time a request, time to build the trie, bytes an item.

Owns the section `catalogue` and its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from genrec.bench.decode_models import Setup, build_small, draw_codes
from genrec.bench.decode_options import DecodeBench
from genrec.bench.decode_timing import time_watched
from genrec.bench.rows import BenchRow, build_row
from genrec.decode.engine import Normalize, Search
from genrec.decode.trie import Trie

N_ITEMS = (100_000, 1_000_000, 10_000_000)
QUICK_N_ITEMS = (300, 1000)
MOST_PERCENT, MOST_SECONDS, MOST_BYTES = 5.0, 1.5, 6.0
# A request takes a tenth of a second, and 5% of that is little: many rounds.
_ROUNDS = 5
_MODES: tuple[Normalize, ...] = ("level", "vocab")


def bench_catalogue(options: DecodeBench) -> list[BenchRow]:
    """Tries of 1e5 to 1e7 random items, and one model that searches each."""
    setup = build_small(options)
    n_items = QUICK_N_ITEMS if options.quick else N_ITEMS
    rows, tries = [], []
    for size in n_items:
        trie, built = _build_trie(size, setup.sizes.n_codes, options)
        tries.append(trie)
        rows += built
    prompts = setup.draw_prompts(1).tolist()
    for mode in _MODES:
        rivals = {f"{trie.n_items}": _make_search(setup, trie, prompts, mode) for trie in tries}
        timing = time_watched(rivals, _ROUNDS * options.repeats)
        least, *larger = rivals
        where = f"{setup.name}, {setup.sizes.describe(1)}, engine {mode}"
        rows.append(build_row(f"{where}, {int(least):,} items", timing.median(least), "seconds"))
        for name in larger:
            more = 100 * (timing.compare(name, least) - 1)
            rows.append(
                build_row(
                    f"{where}, {int(name):,} items",
                    more,
                    "% more time a request",
                    most=options.target(MOST_PERCENT),
                    against=f"{int(least):,} items",
                )
            )
        rows += timing.describe_others(where)
    return rows


def _make_search(
    setup: Setup, trie: Trie, prompts: list[list[int]], mode: Normalize
) -> Callable[[], object]:
    width = setup.sizes.width
    engine = setup.engine.replace_trie(trie)
    return partial(engine.rank_prompts, prompts, width, Search(width, mode))


def _build_trie(n_items: int, n_codes: int, options: DecodeBench) -> tuple[Trie, list[BenchRow]]:
    codes = draw_codes(n_items, n_codes, seed=1)
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        trie = Trie.from_codes(codes)
        seconds.append(time.perf_counter() - started)
    is_largest = n_items == N_ITEMS[-1]
    name = f"trie of {n_items:,} random items, 4 levels of {n_codes} codes"
    return trie, [
        build_row(
            f"{name}: built, best of {options.repeats}",
            min(seconds),
            "seconds",
            most=MOST_SECONDS if is_largest else None,
        ),
        build_row(
            f"{name}: without the item order of {trie.order.itemsize} bytes",
            (trie.n_bytes - trie.order.nbytes) / n_items,
            "bytes an item",
            most=MOST_BYTES if is_largest else None,
        ),
    ]

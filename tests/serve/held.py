"""An engine that waits until it is let go, so that tests decide what is running."""

from __future__ import annotations

import copy
import threading
from typing import Any

from genrec.recommender import Recommender
from genrec.types import RankedItems


class HeldEngine:
    """Another engine behind a gate; it notes what it was asked together."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[int] = []
        self.fault: Exception | None = None

    @property
    def n_items(self) -> int:
        return int(self.engine.n_items)

    def rank_prompts(self, prompts: Any, k: int, *rest: Any, **words: Any) -> RankedItems:
        self.batches.append(len(prompts))
        self.entered.release()
        assert self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        ranked: RankedItems = self.engine.rank_prompts(prompts, k, *rest, **words)
        return ranked


def hold_engine(recommender: Recommender) -> tuple[Recommender, HeldEngine]:
    """The same recommender over a held engine; the given one stays as it is."""
    held = HeldEngine(recommender.engine)
    other = copy.copy(recommender)
    other.engine = held
    return other, held

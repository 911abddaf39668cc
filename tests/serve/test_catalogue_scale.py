"""A change costs what it should on a catalogue of 100,000 items, and so does a start."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.catalogue import frame_items
from genrec.decode.trie import Trie
from genrec.recommender import Recommender
from genrec.serve.catalogue_store import CatalogueStore
from genrec.serve.item_codes import NewItem
from genrec.serve.item_encoder import ItemEncoder, Sources
from genrec.serve.journal import Journal
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import fit_tokenizer

N_ITEMS, WIDTH = 100_000, 16


class NoModel:
    """An engine's items without its weights."""

    codebook_sizes = (128, 128, 128)

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self.n_items = trie.n_items

    def replace_trie(self, trie: Trie) -> NoModel:
        return NoModel(trie)

    def rank_prompts(self, *_: object, **__: object) -> Any:
        raise AssertionError


@pytest.mark.slow
def test_changes_of_a_large_catalogue_take_seconds(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(N_ITEMS, WIDTH)).astype(np.float32)
    rqkmeans = {"iterations": 5, "sample_items": 5000, "refine_rounds": 0}
    recipe = TokenizeRecipe.model_validate(
        {"quantizer": "rqkmeans", "codebook_sizes": NoModel.codebook_sizes, "rqkmeans": rqkmeans}
    )
    ids = tuple(f"own{row}" for row in range(N_ITEMS))
    tokenizer = fit_tokenizer(recipe, FitInput(ids, vectors)).tokenizer
    index = frame_items(ids, ids, tokenizer.sids, ["Home > Lamps"] * N_ITEMS)
    engine: Any = NoModel(Trie.from_codes(tokenizer.codes))
    prompt: Any = None
    model = Recommender(engine, None, prompt, index)
    encoder = ItemEncoder(tokenizer, Sources())
    store = CatalogueStore(Journal.open(tmp_path), model, encoder)
    later = chance.normal(size=(N_ITEMS, WIDTH)).astype(np.float32).tolist()
    items = [NewItem(f"new{row}", f"title {row}", embedding=v) for row, v in enumerate(later)]
    seconds: dict[str, float] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        seconds[name] = time.process_time() - began

    measure("one", lambda: store.add_items(items[:1]))
    measure("thousand", lambda: store.add_items(items[1:1001]))
    measure("all", lambda: store.add_items(items[1001:]))
    measure("availability", lambda: store.set_availability({"new5": False}))
    measure("remove", lambda: store.remove_items(ids[:1000]))
    assert store.edition.recommender.n_items == 2 * N_ITEMS - 1000
    measure("rollback", lambda: store.roll_back(1))
    measure("rollback of it", lambda: store.roll_back(6))
    store.close()
    began = time.process_time()
    again = CatalogueStore(Journal.open(tmp_path), model, encoder)
    seconds["start"] = time.process_time() - began

    assert again.edition.recommender.n_items == 2 * N_ITEMS - 1000
    again.close()
    assert seconds["availability"] < 0.5, seconds
    assert max(seconds["one"], seconds["thousand"]) < 5
    assert max(seconds.values()) < 30

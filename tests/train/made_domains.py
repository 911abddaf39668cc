"""Two made domains in one catalogue, which the first code of every item tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.recipe import DataRecipe
from genrec.data.step import make_data
from genrec.prompts.recipe import PromptsRecipe
from genrec.prompts.step import make_instructions
from genrec.recipe import find_folder
from tests.train.made_inputs import Inputs, item_text, write_tokenizer

N_ITEMS = 40
DOMAINS = ("beauty", "sports")


def find_domain(item: int) -> str:
    return DOMAINS[item // 24]


def write_domains(folder: Path) -> Inputs:
    """Items with a column `domain`, and users who choose from both."""
    items = range(N_ITEMS)
    pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in items],
            "title": [item_text(item) for item in items],
            "domain": [find_domain(item) for item in items],
        }
    ).write_csv(folder / "items.csv")
    random = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": place}
        for user in range(40)
        for place, item in enumerate(random.permutation(N_ITEMS)[:6].tolist())
    ]
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    recipe = DataRecipe(
        source="table",
        items=str(folder / "items.csv"),
        interactions=str(folder / "log.csv"),
        item_columns={"domain": "domain"},
        cold_items=True,
    )
    data = make_data(recipe, folder / "data")
    tokenizer = write_tokenizer(folder / "tokenizer", data, N_ITEMS)
    prompts = PromptsRecipe(
        templates=(str(find_folder("prompts") / "sequential.yaml"),), tasks={"sequential": 1.0}
    )
    rows_of = make_instructions(prompts, data.path, tokenizer.path, folder / "instructions")
    return Inputs(data.path, tokenizer.path, rows_of.path)

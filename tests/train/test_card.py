"""What the card of a model directory says, and that a hub can read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from genrec.train.card import render_card
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from tests.train.made_domains import write_domains

SETTINGS = {
    "n_items": 1234,
    "n_levels": 3,
    "codebook_sizes": [8, 8, 4],
    "base": "Qwen/Qwen3-0.6B",
    "domain": None,
}
FACTS: dict[str, Any] = {
    "data": {"source": "amazon2023", "users": 5000, "items": 1234, "interactions": 60000,
             "split": {"test": 5000, "train": 50000, "valid": 5000}},
    "instructions": {"tasks": {"sequential": 45000, "item-to-sid": 1234}, "templates": 7},
    "rows": 46000, "updates": 1500, "tokens": 3456789, "best_eval_loss": 1.23456,
    "best_eval_NDCG@10": 0.04321, "parameters": 600000000, "trained_parameters": 10000000,
    "tasks": {
        "sequential": {"rows": 90000, "target_tokens": 360000, "loss": 1.5, "eval_loss": 1.25},
        "item-to-sid": {"rows": 2468, "target_tokens": 9872, "loss": 0.5},
    },
}  # fmt: skip


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def test_the_front_matter_is_what_a_hub_takes(tmp_path: Path) -> None:
    card = ModelCard(render_card(SETTINGS, TrainRecipe(), FACTS, tmp_path))
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {"genrec", "lora", "generative-recommendation"} <= set(card.data.tags)
    assert card.data.license is None
    # A hub refuses a path as a base, and an adapter tag on what has none is no help.
    settings = SETTINGS | {"base": "/runs/base"}
    card = ModelCard(render_card(settings, TrainRecipe(method="full"), FACTS, tmp_path))
    assert card.data.base_model is None
    assert "lora" not in card.data.tags
    assert "Made by genrec from `/runs/base`" in card.text


def test_data_recipe_and_metrics_are_told(tmp_path: Path) -> None:
    recipe = TrainRecipe(rank=24, stop_metric="NDCG@10", domain="beauty", epochs=2)
    card = render_card(SETTINGS | {"domain": "beauty"}, recipe, FACTS, tmp_path)
    assert "# A generative recommender of 1,234 items" in card
    assert "3 tokens, of codebooks 8 x 8 x 4. It was tuned for the domain `beauty`." in card
    data = section(card, "Data")
    for line in (
        "| source | amazon2023 |",
        "| interactions | 60,000 |",
        "| split | test 5,000, train 50,000, valid 5,000 |",
        "| domain | `beauty` |",
    ):
        assert line in data
    training = section(card, "Training")
    for line in (
        "| base | `Qwen/Qwen3-0.6B` |",
        "| rank, alpha, dropout | 24, 32, 0.05 |",
        "| rows | 46,000 |",
        "| rows by task, before filters | sequential 45,000, item-to-sid 1,234 |",
        "| templates | 7 |",
        "| epochs at most | 2 |",
        "| tokens | 3,456,789 |",
        "| trained parameters | 10,000,000 |",
    ):
        assert line in training
    metrics = section(card, "Metrics")
    assert "| best validation loss | 1.235 |" in metrics
    assert "| NDCG@10 on validation users | 0.04321 |" in metrics
    assert "| sequential | 90,000 | 360,000 | 1.5 | 1.25 |" in metrics
    assert "| item-to-sid | 2,468 | 9,872 | 0.5 |  |" in metrics
    block = "\n".join(
        line[4:] for line in section(card, "Recipe").splitlines() if line.startswith("    ")
    )
    assert yaml.safe_load(block) == {
        "kind": "train", "rank": 24, "epochs": 2.0, "stop_metric": "NDCG@10", "domain": "beauty",
    }  # fmt: skip


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    card = render_card(SETTINGS, TrainRecipe(max_steps=3), {"best_eval_loss": None}, tmp_path)
    assert "Not known." in section(card, "Data")
    assert "Not known." in section(card, "Metrics")
    assert "None" not in card
    assert "epochs at most" not in card


@pytest.mark.parametrize(
    ("rank", "shown"), [(1, " 1 "), (9, " 16 "), (64, " 64 "), (300, " 320 "), (600, None)]
)
def test_vllm_is_told_the_next_rank_that_it_takes(
    rank: int, shown: str | None, tmp_path: Path
) -> None:
    for name in ("base", "lora"):
        (tmp_path / name).mkdir()
    use = section(render_card(SETTINGS, TrainRecipe(rank=rank), {}, tmp_path), "Use")
    assert ("--enable-lora" in use) == (shown is not None)
    if shown is not None:
        assert f"'this directory/base' --enable-lora --max-lora-rank{shown}" in use


def test_the_card_of_a_real_run_and_of_its_next_version(
    bases: Callable[[str], Path], recipe: TrainRecipe, tmp_path: Path
) -> None:
    inputs = write_domains(tmp_path)
    recipe = recipe.model_copy(update={"max_steps": 2, "eval_every": 2.0, "export_base": True})
    out = tmp_path / "model"
    make_model(recipe, bases("qwen3"), inputs.instructions, inputs.tokenizer, inputs.data, out)
    card = (out / "README.md").read_text()
    ModelCard(card)
    assert "| source | table |" in card
    assert "| users | 40 |" in card
    assert "| updates | 2 |" in card
    assert "| rows by task, before filters | sequential" in card
    assert "best validation loss" in card
    listed = section(card, "Files")
    for name in ("adapter/", "base/", "lora/", "item_index.parquet", "training.jsonl"):
        assert f"- `{name}`: " in listed
    assert "soft_users" not in listed
    told = {line.split("`")[1].rstrip("/") for line in listed.splitlines() if "`" in line}
    paired = {"README.md", "generation_config.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == told | paired

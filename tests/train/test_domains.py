"""One base with a vocabulary, and an adapter for each of two made domains over it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.artifact import load_artifact
from genrec.cli import app
from genrec.errors import DataError
from genrec.recommender import Recommender
from genrec.train import splits
from genrec.train.domains import choose_domain
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from tests.train.made_domains import DOMAINS, N_ITEMS, find_domain, write_domains
from tests.train.made_inputs import Inputs

HISTORY = ["i1", "i20", "i3"]


@dataclass(frozen=True)
class Shelf:
    """A base that knows the items of all domains, and a model directory for each of them."""

    inputs: Inputs
    shared: Path
    models: dict[str, Path]


def make(recipe: TrainRecipe, base: str | Path, inputs: Inputs, out: Path) -> Path:
    make_model(recipe, base, inputs.instructions, inputs.tokenizer, inputs.data, out)
    return out


@pytest.fixture(scope="module")
def recipe() -> TrainRecipe:
    return TrainRecipe(
        rank=4,
        alpha=8,
        dropout=0.0,
        learning_rate=0.02,
        scheduler="constant",
        batch_size=16,
        eval_every=0.0,
        precision="fp32",
    )


def make_shelf(folder: Path, base: Path, recipe: TrainRecipe, n_shared: int, n_own: int) -> Shelf:
    """Train the base for so many updates, and each domain's adapter for so many."""
    inputs = write_domains(folder)
    first = recipe.model_copy(update={"export_base": True, "max_steps": n_shared})
    shared = make(first, base, inputs, folder / "shared")
    models = {}
    for domain in DOMAINS:
        values = {"token_rows": "frozen", "domain": domain, "max_steps": n_own}
        models[domain] = make(recipe.model_copy(update=values), shared, inputs, folder / domain)
    return Shelf(inputs, shared, models)


@pytest.fixture(scope="module")
def shelf(
    bases: Callable[[str], Path], recipe: TrainRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Shelf:
    return make_shelf(tmp_path_factory.mktemp("domains"), bases("qwen3"), recipe, 3, 6)


def read_logits(model: Any, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)("Chosen so far: <a_1><b_2><c_3>")["input_ids"]
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


@pytest.mark.slow
def test_each_adapter_answers_for_its_own_domain(
    bases: Callable[[str], Path], recipe: TrainRecipe, tmp_path: Path
) -> None:
    first, second = DOMAINS
    taught = make_shelf(tmp_path, bases("qwen3"), recipe, 60, 30)
    shares = {}
    for domain, model in taught.models.items():
        found = Recommender.from_pretrained(model).recommend(HISTORY, k=N_ITEMS)
        chances = dict.fromkeys(DOMAINS, 0.0)
        for answer in found:
            chances[find_domain(int(answer.item_id[1:]))] += math.exp(answer.score)
        shares[domain] = chances[first] / sum(chances.values())
    assert shares[first] > shares[second] + 0.2


def test_the_adapters_answer_differently(shelf: Shelf) -> None:
    answers = {
        domain: Recommender.from_pretrained(model).recommend(HISTORY, k=5)
        for domain, model in shelf.models.items()
    }
    first, second = ([answer.item_id for answer in answers[domain]] for domain in DOMAINS)
    assert first != second


def test_adapters_side_by_side_over_one_base_are_their_merged_models(shelf: Shelf) -> None:
    base = AutoModelForCausalLM.from_pretrained(shelf.shared / "base")
    first, second = DOMAINS
    both = PeftModel.from_pretrained(base, shelf.models[first] / "lora", adapter_name=first)
    both.load_adapter(shelf.models[second] / "lora", adapter_name=second)
    seen = []
    for domain in (first, second, first):
        both.set_adapter(domain)
        merged = AutoModelForCausalLM.from_pretrained(shelf.models[domain])
        logits = read_logits(both, shelf.shared)
        assert torch.allclose(logits, read_logits(merged, shelf.models[domain]), atol=1e-4)
        seen.append(logits)
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] - seen[1]).abs().max() > 0.1


def test_a_domain_adapter_says_what_it_is_and_copies_no_base(shelf: Shelf) -> None:
    rows = load_from_disk(str(shelf.inputs.instructions / "train"))["domain"]
    for domain, model in shelf.models.items():
        settings = json.loads((model / "genrec.json").read_text())
        assert settings["domain"] == domain
        assert settings["base"] == str(shelf.shared / "base")
        assert not (model / "base").exists() and not (model / "adapter").exists()
        config = json.loads((model / "lora" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(shelf.shared / "base")
        facts = load_artifact(model).manifest.facts
        assert facts["rows"] == list(rows).count(domain) > 0
        card = (model / "README.md").read_text()
        assert f"tuned for the domain `{domain}`" in card
        assert f"vllm serve '{shelf.shared / 'base'}' --enable-lora --max-lora-rank 8" in card
    assert json.loads((shelf.shared / "genrec.json").read_text())["domain"] is None


def test_training_and_validation_rows_are_those_of_the_domain(
    shelf: Shelf, recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}
    encode = splits.encode_rows

    def encode_rows(tokenizer: Any, rows: Any, tokens: int, split: str, *others: Any) -> Any:
        seen[split] = set(rows["domain"])
        return encode(tokenizer, rows, tokens, split, *others)

    monkeypatch.setattr(splits, "encode_rows", encode_rows)
    values = {"domain": "sports", "eval_every": 1.0, "max_steps": 1, "eval_rows": 8}
    out = make(recipe.model_copy(update=values), shelf.shared, shelf.inputs, tmp_path / "m")
    assert seen == {"training": {"sports"}, "validation": {"sports"}}
    assert load_artifact(out).manifest.facts["best_eval_loss"] > 0


def test_an_unknown_domain_is_refused_and_the_known_ones_are_named(
    shelf: Shelf, inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    unknown = recipe.model_copy(update={"domain": "sport"})
    with pytest.raises(DataError, match=r"domain 'sport'; choose one of 'beauty', 'sports'"):
        make(unknown, shelf.shared, shelf.inputs, tmp_path / "m")
    with pytest.raises(DataError, match="domain 'sport'; give the items a column `domain`"):
        make(unknown, shelf.shared, inputs, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert choose_domain([], "sports") == []


def test_the_command_takes_a_model_directory_as_base(shelf: Shelf, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    arguments = [
        *("train", "tiny", "token_rows=frozen", "domain=beauty", "max_steps=1", "precision=fp32"),
        *("--data", shelf.inputs.data, "--tokenizer", shelf.inputs.tokenizer),
        *("--instructions", shelf.inputs.instructions, "--base", shelf.shared),
        *("--out", tmp_path / "m"),
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert load_artifact(tmp_path / "m").manifest.inputs["base"]["path"] == str(shelf.shared)
    again = CliRunner().invoke(app, list(map(str, arguments)))
    assert "is up to date" in again.output

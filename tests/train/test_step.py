"""The train step as a whole: inputs, export, resume across runs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.artifact import load_artifact
from genrec.errors import ArtifactError, DataError, ModelError, RecipeError
from genrec.train import export, step
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from genrec.train.trainer import CompletionTrainer
from tests.train.made_inputs import (
    CODEBOOKS,
    Inputs,
    item_codes,
    item_text,
    write_data,
    write_instructions,
    write_tokenizer,
)


def make(recipe: TrainRecipe, base: str | Path | None, inputs: Inputs, out: Path) -> Any:
    return make_model(recipe, base, inputs.instructions, inputs.tokenizer, inputs.data, out)


@pytest.fixture
def short(recipe: TrainRecipe) -> TrainRecipe:
    return recipe.model_copy(update={"max_steps": 3})


@pytest.mark.parametrize(
    ("kind", "method"),
    [("qwen3", "lora"), ("llama", "lora"), ("gpt2", "lora"), ("qwen3", "full"), ("llama", "full")],
)
def test_logits_are_the_same_after_export(
    kind: str,
    method: str,
    bases: Callable[[str], Path],
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def export_model(model: Any, tokenizer: Any, *arguments: Any) -> None:
        seen["ids"] = tokenizer("The user chose: <a_1><b_2><c_3>. Next:<a_0>")["input_ids"]
        with torch.no_grad():
            seen["logits"] = model.eval()(torch.tensor([seen["ids"]])).logits
        export.export_model(model, tokenizer, *arguments)

    monkeypatch.setattr(step, "export_model", export_model)
    recipe = short.model_copy(update={"method": method})
    artifact = make(recipe, bases(kind), inputs, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    model = AutoModelForCausalLM.from_pretrained(artifact.path)
    assert tokenizer("The user chose: <a_1><b_2><c_3>. Next:<a_0>")["input_ids"] == seen["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([seen["ids"]])).logits
    assert torch.allclose(logits, seen["logits"], atol=1e-4)
    assert (artifact.path / "adapter").exists() == (method == "lora")
    assert model.config.use_cache
    assert model.config.pad_token_id == tokenizer.pad_token_id
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind != "llama")


def test_directory_holds_all_that_is_promised(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    artifact = make(short, bases("qwen3"), inputs, tmp_path / "model")
    path = artifact.path
    assert load_artifact(path, step="train").manifest.inputs.keys() == {
        "data",
        "tokenize",
        "prompts",
    }
    index = pl.read_parquet(path / "item_index.parquet")
    assert index.columns == ["item_index", "item_id", "title", "sid", "codes", "categories"]
    assert index["item_index"].to_list() == list(range(40))
    assert index["item_id"][7] == "i7"
    assert index["title"][7] == item_text(7)
    assert np.array_equal(np.array(index["codes"].to_list()), item_codes(40))
    assert index.schema["codes"] == pl.List(pl.Int32)
    settings = json.loads((path / "genrec.json").read_text())
    assert settings["schema"] == 1
    assert settings["n_levels"] == 3
    assert settings["codebook_sizes"] == list(CODEBOOKS)
    assert len(settings["catalogue_digest"]) == 64
    instructions = inputs.instructions / "recommend.json"
    assert (path / "recommend.json").read_bytes() == instructions.read_bytes()
    lines = [json.loads(line) for line in (path / "training.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "learning_rate", "tokens"} <= lines[0].keys()
    assert any("eval_loss" in line for line in lines)
    assert "40 items" in (path / "README.md").read_text()
    assert not list(path.rglob("*.bin")) and not list(path.rglob("*.pt"))
    assert not (path / "checkpoints").exists()
    facts = artifact.manifest.facts
    assert facts["updates"] == 3
    assert 0 < facts["trained_parameters"] < facts["parameters"]


def test_adapter_on_the_extended_base_gives_the_merged_logits(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    artifact = make(short, bases("llama"), inputs, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(artifact.path)
    base = AutoModelForCausalLM.from_pretrained(bases("llama"))
    base.resize_token_embeddings(merged.config.vocab_size, mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, artifact.path / "adapter").eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(artifact.path)("red <a_1><b_1>").input_ids])
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)


def test_training_goes_on_from_a_genrec_model_of_the_same_catalogue_only(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    first = make(short, bases("qwen3"), inputs, tmp_path / "first")
    second = make(short, first.path, inputs, tmp_path / "second")
    assert second.manifest.inputs["base"]["digest"] == first.manifest.digest
    settings = json.loads((first.path / "genrec.json").read_text())
    copy = Path(shutil.copytree(first.path, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    (copy / "genrec.json").write_text(json.dumps(settings | {"catalogue_digest": "other"}))
    with pytest.raises(ModelError, match="was trained by genrec on another catalogue"):
        make(short, copy, inputs, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_killed_step_resumes_and_another_base_starts_clean(
    bases: Callable[[str], Path],
    inputs: Inputs,
    recipe: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = recipe.model_copy(update={"max_steps": 6, "eval_every": 2.0})
    training_step = CompletionTrainer.training_step

    def kill(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return training_step(self, *arguments, **words)

    def make_killed(base: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CompletionTrainer, "training_step", kill)
            with pytest.raises(KeyboardInterrupt):
                make(recipe, base, inputs, tmp_path / "model")

    make_killed(bases("qwen3"))
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path / "model")
    with caplog.at_level(logging.INFO):
        make_killed(bases("llama"))
    assert "had another base model; starting clean" in caplog.text
    assert "resuming" not in caplog.text
    with caplog.at_level(logging.INFO):
        artifact = make(recipe, bases("llama"), inputs, tmp_path / "model")
    assert "resuming from checkpoint-2" in caplog.text
    assert artifact.manifest.facts["updates"] == 6
    whole = make(recipe, bases("llama"), inputs, tmp_path / "whole")
    files = [a.manifest.files["model.safetensors"].sha256 for a in (artifact, whole)]
    assert files[0] == files[1]


def test_a_base_that_was_trained_anew_starts_clean(
    bases: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases("qwen3"), base)
    step._forget_other_base(tmp_path, str(base))
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        step._forget_other_base(tmp_path, str(base))
        assert "starting clean" not in caplog.text
        assert (tmp_path / "checkpoints").exists()
        weights = load_file(base / "model.safetensors")
        save_file(weights, base / "model.safetensors", metadata={"format": "pt", "made": "anew"})
        step._forget_other_base(tmp_path, str(base))
    assert "had another base model; starting clean" in caplog.text
    assert not (tmp_path / "checkpoints").exists()


def test_inputs_that_do_not_belong_together_are_refused(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    data = load_artifact(inputs.data)
    other = write_tokenizer(tmp_path / "other", data, seed=5)
    with pytest.raises(ArtifactError, match="was made from another tokenize artefact"):
        make_model(
            short, bases("qwen3"), inputs.instructions, other.path, data.path, tmp_path / "m"
        )
    small = write_tokenizer(tmp_path / "small", data, n_items=30)
    rows = write_instructions(tmp_path / "rows", data, small, n_items=30)
    with pytest.raises(ArtifactError, match=r"10 of 40 items have no semantic ID .*'i30'"):
        make_model(short, bases("qwen3"), rows.path, small.path, data.path, tmp_path / "m")
    with pytest.raises(ArtifactError):
        make_model(short, bases("qwen3"), data.path, inputs.tokenizer, data.path, tmp_path / "m")


def test_no_base_and_no_rows_are_refused(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"no base model: run `genrec base`"):
        make(short, None, inputs, tmp_path / "m")
    data, tokenizer = load_artifact(inputs.data), load_artifact(inputs.tokenizer)
    empty = write_instructions(tmp_path / "empty", data, tokenizer, n_rows=0)
    with pytest.raises(DataError, match="the instructions have no training rows"):
        make_model(short, bases("qwen3"), empty.path, tokenizer.path, data.path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_base_in_the_recipe_is_used(
    bases: Callable[[str], Path], inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    recipe = short.model_copy(update={"base": str(bases("gpt2")), "eval_every": 0.0})
    artifact = make(recipe, None, inputs, tmp_path / "model")
    assert artifact.manifest.facts["base"] == str(bases("gpt2"))
    assert artifact.manifest.facts["best_eval_loss"] is None


def test_head_with_a_bias_is_refused_for_lora(
    bases: Callable[[str], Path],
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = step.load_checkpoint

    def with_bias(*arguments: Any) -> Any:
        checkpoint = load(*arguments)
        head = checkpoint.model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        return checkpoint

    monkeypatch.setattr(step, "load_checkpoint", with_bias)
    with pytest.raises(ModelError, match=r"has a bias, which PEFT .* use method: full"):
        make(short, bases("llama"), inputs, tmp_path / "m")


def test_validation_rows_are_sampled_and_data_without_titles_works(
    bases: Callable[[str], Path], short: TrainRecipe, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", text=False)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", data)
    rows = write_instructions(tmp_path / "rows", data, tokenizer)
    recipe = short.model_copy(update={"eval_rows": 5, "max_steps": 1})
    artifact = make_model(
        recipe, bases("qwen3"), rows.path, tokenizer.path, data.path, tmp_path / "model"
    )
    assert artifact.manifest.facts["best_eval_loss"] > 0

"""What a model directory holds, and that its parts together are the merged model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from genrec.artifact import load_artifact
from genrec.errors import ModelError
from genrec.tokenizers.update_step import remove_from_artifact
from genrec.train.checkpoint import quiet_transformers, read_catalogue_digest
from genrec.train.recipe import TrainRecipe
from genrec.train.refresh import apply_tokenizer
from genrec.train.step import make_model
from tests.train.made_inputs import (
    Inputs,
    write_data,
    write_instructions,
    write_tokenizer,
)

PROMPT = "The user chose: <a_1><b_2><c_3>. Next:<a_0>"
Bases = Callable[[str], Path]


def make(recipe: TrainRecipe, base: str | Path | None, inputs: Inputs, out: Path) -> Path:
    make_model(recipe, base, inputs.instructions, inputs.tokenizer, inputs.data, out)
    return out


def read_logits(model: Any, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


def open_merged(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def open_parts(base: Path, lora: Path) -> PeftModel:
    return PeftModel.from_pretrained(open_merged(base), lora)


@pytest.fixture
def short(recipe: TrainRecipe) -> TrainRecipe:
    """Three updates, so large that adapter and rows matter; both parts are exported."""
    values = {"max_steps": 3, "eval_every": 0.0, "export_base": True, "learning_rate": 0.05}
    return recipe.model_copy(update=values)


@pytest.fixture(scope="module")
def shared(bases: Bases, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose base knows the vocabulary, for adapters over frozen rows."""
    recipe = TrainRecipe(
        rank=4,
        dropout=0.0,
        learning_rate=0.05,
        batch_size=8,
        max_steps=3,
        eval_every=0.0,
        export_base=True,
        precision="fp32",
    )
    return make(recipe, bases("qwen3"), inputs, tmp_path_factory.mktemp("shared") / "model")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("qwen3", "lora"),
        ("llama", "rslora"),
        ("gpt2", "lora"),
        pytest.param("llama", "qlora", marks=pytest.mark.slow),
        pytest.param("llama", "lora", marks=pytest.mark.slow),
        pytest.param("qwen3", "rslora", marks=pytest.mark.slow),
        pytest.param("gpt2", "rslora", marks=pytest.mark.slow),
        pytest.param("qwen3", "qlora", marks=pytest.mark.slow),
    ],
)
def test_base_and_lora_together_are_the_merged_model(
    kind: str, method: str, bases: Bases, inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    recipe = short.model_copy(update={"method": method})
    out = make(recipe, bases(kind), inputs, tmp_path / "model")
    merged, base = open_merged(out), open_merged(out / "base")
    wanted = read_logits(merged, out)
    assert torch.allclose(
        read_logits(open_parts(out / "base", out / "lora"), out), wanted, atol=1e-4
    )
    assert not torch.allclose(read_logits(base, out), wanted, atol=1e-2)

    tokenizer, old = AutoTokenizer.from_pretrained(out / "base"), open_merged(bases(kind))
    assert tokenizer(PROMPT)["input_ids"] == AutoTokenizer.from_pretrained(out)(PROMPT)["input_ids"]
    assert base.config.pad_token_id == tokenizer.pad_token_id
    n_text = len(AutoTokenizer.from_pretrained(bases(kind)))
    for find in (PreTrainedModel.get_input_embeddings, PreTrainedModel.get_output_embeddings):
        rows, merged_rows, old_rows = (find(model).weight for model in (base, merged, old))
        assert torch.equal(rows, merged_rows)
        assert torch.equal(rows[:n_text], old_rows[:n_text])
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    assert tied == (kind != "llama")


def test_lora_holds_what_vllm_takes_and_the_adapter_as_trained_is_there_too(
    shared: Path,
) -> None:
    assert all(".lora_" in name for name in load_file(shared / "lora/adapter_model.safetensors"))
    lora, adapter = (
        json.loads((shared / name / "adapter_config.json").read_text())
        for name in ("lora", "adapter")
    )
    assert lora["target_modules"] == sorted(lora["target_modules"]) == adapter["target_modules"]
    assert lora["trainable_token_indices"] is None
    assert lora["modules_to_save"] is None
    assert lora["base_model_name_or_path"] == str((shared / "base").resolve())
    whole = load_file(shared / "adapter" / "adapter_model.safetensors")
    assert any("trainable_tokens" in name for name in whole)
    assert {path.name for path in (shared / "lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (shared / "adapter" / "README.md").exists()
    with quiet_transformers():
        found = AutoPeftModelForCausalLM.from_pretrained(shared / "lora")
    wanted = read_logits(open_merged(shared), shared)
    assert torch.allclose(read_logits(found, shared), wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_every_adapter_names_its_base_by_its_whole_path(
    method: str,
    bases: Bases,
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = bases("qwen3")
    monkeypatch.chdir(base.parent)
    recipe = short.model_copy(update={"method": method, "max_steps": 1})
    out = make(recipe, Path(base.name), inputs, tmp_path / "model")
    for folder, named in (("adapter", base), ("lora", out / "base")):
        config = json.loads((out / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(named.resolve())


def test_the_parts_of_a_model_in_several_files_fit(
    bases: Bases,
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = PreTrainedModel.save_pretrained

    def save_in_shards(model: Any, folder: str, **words: Any) -> None:
        save(model, folder, **{"max_shard_size": "20KB"} | words)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_in_shards)
    out = make(short, bases("llama"), inputs, tmp_path / "model")
    assert len(list((out / "base").glob("model-*.safetensors"))) > 2
    assert "model.safetensors.index.json" in (out / "README.md").read_text()
    wanted = read_logits(open_merged(out), out)
    assert torch.allclose(
        read_logits(open_parts(out / "base", out / "lora"), out), wanted, atol=1e-4
    )


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", "dora"),
        *(
            pytest.param(kind, method, marks=pytest.mark.slow)
            for kind in ("qwen3", "llama", "gpt2")
            for method in ("rslora", "dora")
            if (kind, method) != ("llama", "dora")
        ),
    ],
)
def test_without_parts_the_adapter_alone_lies_beside_the_merged_model(
    kind: str, method: str, bases: Bases, inputs: Inputs, short: TrainRecipe, tmp_path: Path
) -> None:
    recipe = short.model_copy(update={"method": method, "export_base": False})
    out = make(recipe, bases(kind), inputs, tmp_path / "model")
    assert (out / "adapter").is_dir()
    assert not (out / "base").exists() and not (out / "lora").exists()
    merged, base = open_merged(out), open_merged(bases(kind))
    base.resize_token_embeddings(merged.config.vocab_size, mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, out / "adapter")
    assert torch.allclose(read_logits(adapted, out), read_logits(merged, out), atol=1e-4)


def test_dora_and_full_tuning_have_no_parts() -> None:
    with pytest.raises(ValidationError, match=r"dora, whose adapters vLLM .* refuses; use method"):
        TrainRecipe(method="dora", export_base=True)
    with pytest.raises(ValidationError, match="export_base needs an adapter"):
        TrainRecipe(method="full", export_base=True)


@pytest.mark.parametrize("method", ["lora", "dora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_an_adapter_over_frozen_rows_names_the_base_of_a_model_directory(
    method: str,
    shared: Path,
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = {"method": method, "token_rows": "frozen", "export_base": False, "seed": 1}
    with caplog.at_level(logging.INFO):
        out = make(short.model_copy(update=values), shared, inputs, tmp_path / "model")
    assert f"the adapter builds on {shared / 'base'}" in caplog.text
    assert load_artifact(out).manifest.inputs["base"]["path"] == str(shared)
    assert json.loads((out / "genrec.json").read_text())["base"] == str(shared / "base")
    assert not (out / "base").exists()
    # vLLM refuses DoRA, so it does not lie where it would be taken from.
    assert (out / "lora").exists() == (method != "dora")
    assert (out / "adapter").exists() == (method == "dora")
    adapter = out / ("adapter" if method == "dora" else "lora")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        str(shared / "base")
    )
    merged = open_merged(out)
    rows = merged.get_input_embeddings().weight
    assert torch.equal(rows, open_merged(shared / "base").get_input_embeddings().weight)
    parts = read_logits(open_parts(shared / "base", adapter), out)
    # Trained and merged over 4 bits, qlora is near the whole base, not on it.
    assert torch.allclose(parts, read_logits(merged, out), atol=1e-4) == (method != "qlora")


def test_frozen_rows_over_what_is_no_model_directory(
    bases: Bases,
    shared: Path,
    inputs: Inputs,
    short: TrainRecipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    frozen = short.model_copy(update={"token_rows": "frozen"})
    with pytest.raises(
        ModelError, match=r"token_rows: frozen needs a base that has learnt .* lack"
    ):
        make(frozen, bases("qwen3"), inputs, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    # Its base/ alone serves as well, here as the recipe's; so does a merged model.
    named = frozen.model_copy(update={"base": str(shared / "base"), "max_steps": 1})
    out = make(named, None, inputs, tmp_path / "own")
    assert not (out / "adapter").exists()
    assert torch.allclose(
        read_logits(open_parts(out / "base", out / "lora"), out),
        read_logits(open_merged(out), out),
        atol=1e-4,
    )
    merged_only = frozen.model_copy(update={"export_base": False, "max_steps": 1})
    plain = make(
        short.model_copy(update={"export_base": False, "max_steps": 1}),
        bases("qwen3"),
        inputs,
        tmp_path / "p",
    )
    with caplog.at_level(logging.INFO):
        out = make(merged_only, str(plain), inputs, tmp_path / "over")
    assert f"the adapter builds on {plain}, whose" in caplog.text


def test_a_base_of_another_catalogue_is_refused_with_and_without_its_model_directory(
    shared: Path, short: TrainRecipe, tmp_path: Path
) -> None:
    assert read_catalogue_digest(str(shared / "base")) == read_catalogue_digest(str(shared))
    data = write_data(tmp_path / "data", n_items=30)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", data, n_items=30)
    rows = write_instructions(tmp_path / "rows", data, tokenizer, n_items=30)
    others = Inputs(data.path, tokenizer.path, rows.path)
    for base in (shared, shared / "base"):
        for rows_are in ("frozen", "train"):
            recipe = short.model_copy(update={"token_rows": rows_are})
            with pytest.raises(ModelError, match="was trained by genrec on another catalogue"):
                make(recipe, base, others, tmp_path / "m")


def test_a_newer_tokenizer_takes_base_lora_and_card_along(tiny_run: Path, tmp_path: Path) -> None:
    recipe = TrainRecipe(rank=2, max_steps=1, eval_every=0.0, export_base=True, precision="fp32")
    inputs = Inputs(tiny_run / "data", tiny_run / "tokenizer", tiny_run / "instructions")
    old = make(recipe, tiny_run / "base", inputs, tmp_path / "old")
    gone = str(pl.read_parquet(old / "item_index.parquet")["item_id"][0])
    newer = tmp_path / "tokenizer"
    remove_from_artifact(tiny_run / "tokenizer", [gone], newer)
    out = tmp_path / "new"
    apply_tokenizer(old, newer, tiny_run / "data", out)

    digests = {read_catalogue_digest(str(path)) for path in (out, out / "base")}
    assert len(digests) == 1
    assert read_catalogue_digest(str(old / "base")) not in digests
    config = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out / "base")
    load_artifact(old, step="train")  # whose files these were is untouched
    before, after = ((folder / "README.md").read_text() for folder in (old, out))
    assert "recommender of 60 items" in before and "recommender of 59 items" in after
    assert "| items added since, removed since | 0, 1 " in after
    for line in ("| updates | 1 |", "| source | synthetic |", "- `base/`: ", "- `lora/`: "):
        assert line in after

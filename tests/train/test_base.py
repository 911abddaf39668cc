"""A base model from the catalogue's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.errors import DataError, ModelError
from genrec.train.base import make_base
from genrec.train.corpus import pack_blocks, train_tokenizer
from tests.train.made_inputs import PROMPT, TINY_BASE, Inputs, item_text, write_data


def test_base_opens_as_a_plain_checkpoint_and_learns(inputs: Inputs, tmp_path: Path) -> None:
    recipe = TINY_BASE.model_copy(update={"epochs": 40.0, "learning_rate": 1e-2})
    artifact = make_base(recipe, inputs.data, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(artifact.path)
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    text = "red lamp, 12 pieces; naïve ☕ <|x|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert None not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.lm_head.weight is model.get_input_embeddings().weight
    lines = [
        json.loads(line) for line in (artifact.path / "training.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["loss"] == artifact.manifest.facts["loss"]
    assert artifact.manifest.inputs["data"]


def test_same_seed_same_base_and_another_seed_another(inputs: Inputs, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = TINY_BASE.model_copy(update={"seed": seed, "tied_embeddings": False})
        artifact = make_base(recipe, inputs.data, tmp_path / name)
        digests.append(artifact.manifest.files["model.safetensors"].sha256)
    assert digests[0] == digests[1] != digests[2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_time_limit_ends_pretraining(inputs: Inputs, tmp_path: Path) -> None:
    recipe = TINY_BASE.model_copy(update={"epochs": 1e6, "max_seconds": 1e-6})
    artifact = make_base(recipe, inputs.data, tmp_path / "base")
    lines = (artifact.path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_catalogue_without_text_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", text=False)
    with pytest.raises(DataError, match=r"no item of .* has any text.*map a title"):
        make_base(TINY_BASE, data.path, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_loss_that_explodes_stops_and_leaves_nothing(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.train.base._take_step", lambda *_: torch.tensor(float("nan")))
    monkeypatch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", lambda _self: None)
    with pytest.raises(ModelError, match=r"pretraining's loss is nan.*lower learning_rate"):
        make_base(TINY_BASE, inputs.data, tmp_path / "base")
    assert not (tmp_path / "base" / "manifest.json").exists()


def test_extra_text_becomes_whole_tokens() -> None:
    texts = [item_text(item) for item in range(40)]
    plain = train_tokenizer(texts, (), 400)
    known = train_tokenizer(texts, (PROMPT,), 400)
    assert len(known(PROMPT)["input_ids"]) < len(plain(PROMPT)["input_ids"]) / 2


def test_blocks_hold_every_text_once_around() -> None:
    texts = [item_text(item) for item in range(40)]
    tokenizer = train_tokenizer(texts, (), 400)
    blocks = pack_blocks(tokenizer, texts, 16, seed=0)
    flat = blocks.flatten().tolist()
    assert blocks.shape[1] == 16
    assert flat.count(tokenizer.eos_token_id) >= len(texts)
    assert tokenizer.decode(flat[: flat.index(tokenizer.eos_token_id)]).removeprefix(
        "<|start|>"
    ) in set(texts)
    assert torch.equal(blocks, pack_blocks(tokenizer, texts, 16, seed=0))
    assert not torch.equal(blocks, pack_blocks(tokenizer, texts, 16, seed=1))

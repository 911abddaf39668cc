"""Which base models are fit to be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, T5Config
from transformers.utils import logging as hf_logging

from genrec.errors import ModelError
from genrec.train.checkpoint import (
    choose_dtype,
    load_checkpoint,
    quiet_transformers,
    read_catalogue_digest,
)


@pytest.fixture
def copy(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases("qwen3"), tmp_path / "copy"))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_decoder_only_checkpoints_open(kind: str, bases: Callable[[str], Path]) -> None:
    checkpoint = load_checkpoint(bases(kind), torch.bfloat16)
    assert checkpoint.model.dtype == torch.bfloat16
    assert checkpoint.source == str(bases(kind))


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=8, num_layers=1, vocab_size=32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(t5\) is an encoder-decoder.*choose a decoder-only"):
        load_checkpoint(tmp_path, torch.float32)


def test_encoder_that_opens_as_a_causal_model_is_refused(
    tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with quiet_transformers():
        BertForMaskedLM(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(bases("qwen3")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(bert\) is not decoder-only: its first position sees"):
        load_checkpoint(tmp_path, torch.float32)


def test_model_without_a_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match=r"\(vit\) has no next-token head"):
        load_checkpoint(tmp_path, torch.float32)


def test_broken_weights_are_refused(bases: Callable[[str], Path], copy: Path) -> None:
    checkpoint = load_checkpoint(bases("qwen3"), torch.float32)
    with torch.no_grad():
        checkpoint.model.get_input_embeddings().weight.fill_(float("nan"))
    with quiet_transformers():
        checkpoint.model.save_pretrained(copy)
    with pytest.raises(ModelError, match="logits that are not finite"):
        load_checkpoint(copy, torch.float32)


@pytest.mark.parametrize("base", ["./nowhere", "/no/such/folder", Path("nowhere")])
def test_missing_directory_is_named(base: str | Path) -> None:
    with pytest.raises(ModelError, match="does not exist; give an existing checkpoint directory"):
        load_checkpoint(base, torch.float32)


def test_hub_name_that_cannot_be_reached_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"'genrec/no-such-model' cannot be reached.*the network"):
        load_checkpoint("genrec/no-such-model", torch.float32)


def test_directory_without_config_or_weights_is_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match=r"is no Hugging Face checkpoint: it has no config.json"):
        load_checkpoint(tmp_path, torch.float32)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be opened.*pickled ones are refused"):
        load_checkpoint(copy, torch.float32)


def test_end_token_pads_where_there_is_no_pad_token(copy: Path) -> None:
    values = json.loads((copy / "tokenizer_config.json").read_text())
    del values["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = load_checkpoint(copy, torch.float32).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_tokenizer_without_end_token_is_refused(copy: Path) -> None:
    values = json.loads((copy / "tokenizer_config.json").read_text())
    del values["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"has no end-of-text token.*set eos_token"):
        load_checkpoint(copy, torch.float32)


def test_slow_tokenizer_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(ModelError, match="has a slow tokenizer"):
        load_checkpoint(copy, torch.float32)


def test_catalogue_digest_is_read_from_genrec_models_only(copy: Path) -> None:
    assert read_catalogue_digest(str(copy)) is None
    (copy / "genrec.json").write_text('{"catalogue_digest": "abc"}')
    assert read_catalogue_digest(str(copy)) == "abc"


def test_precision_on_this_machine() -> None:
    assert choose_dtype("fp32") == torch.float32
    assert choose_dtype("bf16") == torch.bfloat16
    if not torch.cuda.is_available():
        assert choose_dtype("auto") == torch.float32


def test_quiet_block_leaves_transformers_as_it_was() -> None:
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    with quiet_transformers():
        assert not hf_logging.is_progress_bar_enabled()
    assert hf_logging.is_progress_bar_enabled()
    assert hf_logging.get_verbosity() == hf_logging.WARNING

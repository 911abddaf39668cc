"""Which base models are fit to be trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    T5Config,
)
from transformers.utils import logging as hf_logging

from genrec.errors import ModelError, RecipeError
from genrec.train.checkpoint import (
    choose_dtype,
    frame_prompts,
    load_checkpoint,
    quiet_transformers,
    read_catalogue_digest,
)
from genrec.train.recipe import TrainRecipe


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


@pytest.fixture
def adapter(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LoRA adapter over the llama base, as PEFT saves one."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(bases("llama"))
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"])
        adapted = get_peft_model(model, config)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(9)[None]).logits
    return found


def test_an_adapter_is_merged_into_the_base_that_it_names(
    adapter: Path, bases: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        checkpoint = load_checkpoint(adapter, torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(bases("llama"))
    expected = logits_of(PeftModel.from_pretrained(plain, adapter))
    assert torch.allclose(logits_of(checkpoint.model), expected, atol=1e-5)
    assert not any(".lora_" in name for name, _ in checkpoint.model.named_parameters())
    assert checkpoint.source == str(adapter)
    assert "is merged into its base" in caplog.text
    assert read_catalogue_digest(str(adapter)) is None


def test_an_adapter_with_a_larger_tokenizer_of_its_own(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases("llama"))
    tokenizer.add_tokens([f"<new_{number}>" for number in range(9)])
    tokenizer.save_pretrained(adapter)
    checkpoint = load_checkpoint(adapter, torch.float32)
    assert len(checkpoint.tokenizer) == len(tokenizer)
    assert len(checkpoint.model.get_input_embeddings().weight) == len(tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "narrow", "short", "tall"])
def test_an_adapter_of_another_base_is_refused(
    kind: str, adapter: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    other = bases("gpt2")
    if kind != "gpt2":
        changes = {"narrow": {"intermediate_size": 32}, "short": {"num_hidden_layers": 1}}
        config = AutoConfig.from_pretrained(bases("llama"))
        config.update(changes.get(kind, {"num_hidden_layers": 3}))
        other = Path(shutil.copytree(bases("llama"), tmp_path / "other"))
        with quiet_transformers():
            LlamaForCausalLM(config).save_pretrained(other)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(
        ModelError, match=r"does not fit .*, the base that it names: .*made for ano"
    ):
        load_checkpoint(adapter, torch.float32)


def test_an_adapter_without_a_base_says_what_to_give(adapter: Path, tmp_path: Path) -> None:
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"is an adapter over '.*gone', which cannot be opened"):
        load_checkpoint(adapter, torch.float32)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="is an adapter that names no base model; write it into"):
        load_checkpoint(adapter, torch.float32)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"is an adapter without adapter_model.safetensors"):
        load_checkpoint(adapter, torch.float32)


def test_the_adapter_inside_a_genrec_model_is_not_the_model(adapter: Path) -> None:
    (adapter.parent / "genrec.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is the adapter of a genrec model; give '.*', which has"):
        load_checkpoint(adapter, torch.float32)


def test_an_adapter_knows_the_catalogue_of_its_base(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = Path(shutil.copytree(config["base_model_name_or_path"], tmp_path / "beside"))
    (base / "genrec.json").write_text('{"catalogue_digest": "abc"}')
    change_json(adapter / "adapter_config.json", base_model_name_or_path="../beside")
    assert read_catalogue_digest(str(adapter)) == "abc"
    load_checkpoint(adapter, torch.float32)


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"fp16 needs a CUDA GPU.*use precision: bf16, or fp32"):
        choose_dtype("fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_dtype("fp16") == torch.float16


def test_chat_templates_frame_prompts_unless_told_not_to(
    bases: Callable[[str], Path], copy: Path
) -> None:
    plain = load_checkpoint(bases("qwen3"), torch.float32)
    plain.model.generation_config.eos_token_id = [7, plain.tokenizer.eos_token_id]
    assert frame_prompts(plain, TrainRecipe()).chat is None
    plain.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<turn>{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    plain.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    assert frame_prompts(plain, TrainRecipe(chat="never")).chat is None
    chat = frame_prompts(plain, TrainRecipe(system="Be brief.")).chat
    assert chat is not None
    assert chat.before == "[system] Be brief.<turn>[user] "
    assert (chat.after, chat.end) == ("<turn>[bot]", "<turn>")
    turn, end = plain.tokenizer.convert_tokens_to_ids("<turn>"), plain.tokenizer.eos_token_id
    assert plain.model.generation_config.eos_token_id == [turn, 7, end]

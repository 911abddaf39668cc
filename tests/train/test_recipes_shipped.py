"""Every recipe in `train/` parses; the tiny one trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import StateDictType

from genrec.recipe import parse_recipe, read_yaml, strip_header
from genrec.train.recipe import BaseRecipe, TrainRecipe
from genrec.train.step import make_model
from tests.train.made_inputs import Inputs

LARGE = ("lora-qwen3-0.6b", "lora-qwen3-1.7b", "lora-llama3.2-1b", "qlora-qwen3-8b")
KINDS = {"train": TrainRecipe, "base": BaseRecipe}


def test_recipes_parse_and_every_value_is_explained(repository: Path) -> None:
    paths = sorted((repository / "train").glob("*.yaml"))
    assert {"lora", "full-small", "tiny", "base-small", "base-tiger", *LARGE} <= {
        path.stem for path in paths
    }
    for path in paths:
        values = read_yaml(path)
        kind = values["kind"]
        assert values["about"]
        if kind in KINDS:
            parse_recipe(KINDS[kind], strip_header(values), source=path.name)
        assert path.read_text().count("#") >= 5, path


def test_large_recipes_say_what_they_expect_and_explain_every_line(repository: Path) -> None:
    for name in LARGE:
        text = (repository / "train" / f"{name}.yaml").read_text()
        assert "estimated by `genrec train --estimate`" in text
        assert "not measured" in text and "Time: not run yet" in text
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all(" # " in line for line in lines[2:]), name
        values = strip_header(read_yaml(repository / "train" / f"{name}.yaml"))
        assert {"rank", "row_warmup", "row_learning_rate", "base"} <= values.keys()


def test_accelerate_configs_load(repository: Path) -> None:
    paths = sorted((repository / "train" / "accelerate").glob("*.yaml"))
    names = {"one-gpu", "ddp", "fsdp2", "deepspeed-zero2", "deepspeed-zero3"}
    assert names | {"multi-node", "multi-node-fsdp2"} == {path.stem for path in paths}
    for path in paths:
        config = load_config_from_file(str(path))
        assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
        lines = path.read_text().splitlines()
        assert all("#" in line for line in lines if not line.endswith("_config:")), path


@pytest.mark.parametrize("name", ["fsdp2", "multi-node-fsdp2"])
def test_fsdp_configs_are_ones_that_genrec_takes(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config_from_file(str(repository / "train" / "accelerate" / f"{name}.yaml"))
    for key, value in config.fsdp_config.items():
        text = str(value)
        monkeypatch.setenv(key.upper(), text.lower() if isinstance(value, bool) else text)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.cpu_ram_efficient_loading is False


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_configs_say_what_accelerate_asks_for(stage: int, repository: Path) -> None:
    path = repository / "train" / "accelerate" / f"deepspeed-zero{stage}.yaml"
    config = load_config_from_file(str(path)).deepspeed_config
    assert config["zero_stage"] == stage
    assert config["zero3_init_flag"] is False
    # Each key is an argument of accelerate's plugin, or of its launcher where that has other words.
    known = {field.name for field in dataclasses.fields(DeepSpeedPlugin)}
    assert config.keys() <= known | {"zero3_save_16bit_model"}


def test_tiny_recipe_trains(
    bases: Callable[[str], Path], inputs: Inputs, repository: Path, tmp_path: Path
) -> None:
    values = strip_header(read_yaml(repository / "train" / "tiny.yaml"))
    recipe = parse_recipe(TrainRecipe, {**values, "max_steps": 2})
    artifact = make_model(
        recipe, bases("qwen3"), inputs.instructions, inputs.tokenizer, inputs.data, tmp_path / "m"
    )
    assert artifact.manifest.facts["updates"] == 2

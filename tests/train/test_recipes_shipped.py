"""Every recipe in `train/` parses; the tiny one trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from accelerate.commands.config.config_args import load_config_from_file

from genrec.recipe import parse_recipe, read_yaml, strip_header
from genrec.train.recipe import BaseRecipe, TrainRecipe
from genrec.train.step import make_model
from tests.train.made_inputs import Inputs

KINDS = {"train": TrainRecipe, "base": BaseRecipe}


def test_recipes_parse_and_every_value_is_explained(repository: Path) -> None:
    paths = sorted((repository / "train").glob("*.yaml"))
    assert {"lora", "full-small", "tiny", "base-small"} <= {path.stem for path in paths}
    for path in paths:
        values = read_yaml(path)
        kind = values["kind"]
        assert values["about"]
        if kind in KINDS:
            parse_recipe(KINDS[kind], strip_header(values), source=path.name)
        assert path.read_text().count("#") >= 5, path


def test_accelerate_configs_load(repository: Path) -> None:
    paths = sorted((repository / "train" / "accelerate").glob("*.yaml"))
    assert {"one-gpu", "ddp"} <= {path.stem for path in paths}
    for path in paths:
        config = load_config_from_file(str(path))
        assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_tiny_recipe_trains(
    bases: Callable[[str], Path], inputs: Inputs, repository: Path, tmp_path: Path
) -> None:
    values = strip_header(read_yaml(repository / "train" / "tiny.yaml"))
    recipe = parse_recipe(TrainRecipe, {**values, "max_steps": 2})
    artifact = make_model(
        recipe, bases("qwen3"), inputs.instructions, inputs.tokenizer, inputs.data, tmp_path / "m"
    )
    assert artifact.manifest.facts["updates"] == 2

"""What a run is said to take, against what it takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from genrec.cli_train import build_estimate
from genrec.errors import ModelError, RecipeError
from genrec.recipe import parse_recipe, read_yaml, strip_header
from genrec.train.adapter import count_parameters
from genrec.train.base import build_model
from genrec.train.checkpoint import load_shape
from genrec.train.corpus import train_tokenizer
from genrec.train.estimate import estimate_run, find_largest, measure_memory
from genrec.train.outline import Batch, build_outline
from genrec.train.recipe import BaseRecipe, TrainRecipe
from tests.train.made_inputs import PROMPT, Inputs, item_text
from tests.train.made_runs import begin, environment

PEAK = """
import sys, torch
from transformers import Qwen3Config
from genrec.memory import read_peak, reset_peak
from genrec.train.estimate import _make_step, measure_memory
from genrec.train.outline import Batch, build_outline, build_random
from genrec.train.recipe import TrainRecipe

def shape(vocabulary, hidden, layers):
    return Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    )

recipe = TrainRecipe(method=sys.argv[1], rank=8, precision="fp32", dropout=0.0)
config = shape(4000, 256, 4)
rows = list(range(4000, 4096))
outline = build_outline(config, recipe, rows, 4096)
memory, _ = measure_memory(outline, recipe, Batch(1, 16 * 128, 32))
_make_step(build_random(shape(100, 64, 1), recipe, [98, 99], 100), recipe, 1, 8, "cpu")()  # imports
reset_peak()
before = read_peak()
step = _make_step(build_random(config, recipe, rows, 4096), recipe, 16, 128, "cpu")
step()
step()
print(memory.total, read_peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_memory_is_what_is_measured_to_the_stated_factor(method: str) -> None:
    from genrec.train.estimate import MEMORY_FACTOR

    # glibc keeps freed pieces for later, which on a model this small is more than the model.
    limits = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, method],
        env=environment(**limits), check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    estimated, measured = map(int, done.stdout.split())
    assert estimated / MEMORY_FACTOR < measured < estimated * MEMORY_FACTOR


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_parameters_are_those_of_the_real_model(
    method: str, bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"method": method})
    whole = recipe.model_copy(update={"method": "lora"}) if method == "qlora" else recipe
    run = begin(whole, bases("qwen3"), inputs)
    bare = tmp_path / "bare"  # a config and a tokenizer, and no weights
    shutil.copytree(bases("qwen3"), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    found = estimate_run(recipe, bare, inputs.instructions, inputs.tokenizer, inputs.data)
    assert (found.parameters, found.trained) == count_parameters(run.model)
    assert found.rows == (0 if method == "full" else 15 * 32)
    assert found.updates == 12
    assert found.tokens == 2 * int(run.rows.lengths.sum())
    memory = found.memory
    assert memory.gradients == 4 * found.trained and memory.optimizer == 8 * found.trained
    assert memory.total > memory.weights > 0 and memory.activations > 0 and memory.logits > 0
    assert (found.seconds is None) == (method == "qlora")
    assert 0 < found.h100_seconds < 1
    assert build_estimate(found).row_count == 14


def test_steps_that_are_given_count(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    folders = (bases("llama"), inputs.instructions, inputs.tokenizer, inputs.data)
    all_rows = estimate_run(recipe, *folders)
    half = estimate_run(recipe.model_copy(update={"max_steps": 6}), *folders)
    assert half.updates == 6
    assert half.tokens == pytest.approx(all_rows.tokens / 2, abs=1)


def test_what_saves_memory_is_seen_to(bases: Callable[[str], Path], recipe: TrainRecipe) -> None:
    config = AutoConfig.from_pretrained(bases("llama"))
    size = config.vocab_size

    def measure(**changes: object) -> object:
        changed = recipe.model_copy(update=changes)
        outline = build_outline(config, changed, [size - 1], size)
        return measure_memory(outline, changed, Batch(4, 64, 20))[0]

    plain = measure()
    assert measure(gradient_checkpointing=True).activations < 0.7 * plain.activations
    assert measure(method="qlora").weights < 0.6 * plain.weights
    half = measure(precision="bf16")
    assert half.weights < 0.7 * plain.weights and half.activations < plain.activations
    full = measure(method="full")
    assert full.optimizer > plain.optimizer and full.weights < plain.weights
    assert measure(method="full", precision="bf16").weights == full.weights


def test_the_largest_batch_holds_the_longest_rows(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe
) -> None:
    rows = begin(recipe, bases("qwen3"), inputs).rows
    longest = sorted(rows.lengths)[-recipe.batch_size :]
    packed = find_largest(rows, recipe)
    assert (packed.n_rows, packed.n_tokens) == (1, sum(longest))
    padded = find_largest(rows, recipe.model_copy(update={"packing": False}))
    assert (padded.n_rows, padded.n_tokens) == (8, max(longest))
    assert padded.n_targets >= packed.n_targets > 0


def test_no_base_and_no_tokenizer_are_refused(
    bases: Callable[[str], Path], inputs: Inputs, recipe: TrainRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no base model to estimate for"):
        estimate_run(recipe, None, inputs.instructions, inputs.tokenizer, inputs.data)
    shutil.copy(bases("qwen3") / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, which rows are counted with"):
        load_shape(tmp_path)


def test_the_shipped_base_is_of_tigers_size(repository: Path) -> None:
    values = strip_header(read_yaml(repository / "train" / "base-tiger.yaml"))
    recipe = parse_recipe(BaseRecipe, values)
    tokenizer = train_tokenizer([item_text(item) for item in range(40)], (PROMPT,), 320)
    with torch.device("meta"):
        model = build_model(recipe, tokenizer)
    missing = (recipe.vocab_size - len(tokenizer)) * recipe.hidden_size
    assert 11e6 < count_parameters(model)[0] + missing < 15e6

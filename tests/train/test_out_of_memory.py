"""Running out of memory: what is said, what is kept, and what may change without starting over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrec.artifact import ArtifactWriter, write_artifact
from genrec.errors import ModelError
from genrec.train.out_of_memory import advise_memory, explain_memory, name_run
from genrec.train.recipe import TrainRecipe
from genrec.train.step import make_model
from genrec.train.trainer import CompletionTrainer
from tests.train.made_inputs import Inputs

SMALLER = {"batch_size": 4, "gradient_accumulation": 2}
SAME = SMALLER | {"eval_batch_size": 3, "gradient_checkpointing": True, "packing": False}


def make(recipe: TrainRecipe, base: Path, inputs: Inputs, out: Path) -> Any:
    return make_model(recipe, base, inputs.instructions, inputs.tokenizer, inputs.data, out)


@pytest.fixture
def exhaust(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the next run end in the middle of its fourth update."""
    step = CompletionTrainer.training_step

    def fail(self: CompletionTrainer, *arguments: Any, **words: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return step(self, *arguments, **words)

    def begin() -> None:
        monkeypatch.setattr(CompletionTrainer, "training_step", fail)

    return begin


@pytest.mark.slow
def test_smaller_batches_go_on_from_the_checkpoint_to_the_same_model(
    recipe: TrainRecipe,
    bases: Callable[[str], Path],
    inputs: Inputs,
    tmp_path: Path,
    exhaust: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = recipe.model_copy(update={"max_steps": 5, "eval_every": 2.0})
    whole = make(recipe, bases("qwen3"), inputs, tmp_path / "whole")
    with monkeypatch.context():
        exhaust()
        with pytest.raises(
            ModelError,
            match=r"out of memory at update 3 \(batch_size 8, .*checkpoint-2 stays, .*"
            r"batch_size: 4 with gradient_accumulation: 2",
        ):
            make(recipe, bases("qwen3"), inputs, tmp_path / "model")
        monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        resumed = make(recipe.model_copy(update=SAME), bases("qwen3"), inputs, tmp_path / "model")
    assert "continuing the unfinished run" in caplog.text
    assert "resuming from checkpoint-2" in caplog.text
    assert resumed.manifest.recipe["batch_size"] == 4
    assert resumed.manifest.facts["updates"] == 5
    assert resumed.manifest.facts["tokens"] == whole.manifest.facts["tokens"]
    files = [load_file(a.path / "model.safetensors") for a in (whole, resumed)]
    # Adam divides by the size of a gradient, so that rounding shows where it is next to nothing.
    for name, weight in files[0].items():
        assert torch.allclose(weight, files[1][name], atol=2e-3), name


def test_without_a_checkpoint_the_message_says_so(
    recipe: TrainRecipe,
    bases: Callable[[str], Path],
    inputs: Inputs,
    tmp_path: Path,
    exhaust: Callable[[], None],
) -> None:
    exhaust()
    recipe = recipe.model_copy(update={"max_steps": 5, "eval_every": 0.0})
    with pytest.raises(ModelError, match=r"there was no checkpoint yet \(save_every makes more"):
        make(recipe, bases("qwen3"), inputs, tmp_path / "model")


def test_other_values_are_another_run(recipe: TrainRecipe) -> None:
    assert name_run(recipe) == name_run(recipe.model_copy(update=SAME))
    for change in ({"batch_size": 4}, {"max_tokens": 64}, {"method": "qlora"}, {"seed": 1}):
        assert name_run(recipe) != name_run(recipe.model_copy(update=change))


def test_a_partial_run_is_gone_on_with_by_name(recipe: TrainRecipe, tmp_path: Path) -> None:
    def write(values: TrainRecipe) -> ArtifactWriter:
        run = name_run(values)
        return write_artifact(tmp_path / "a", step="train", recipe=values, run=run, resumable=True)

    for changes, resumed in (({}, False), (SAME, True), ({"seed": 1}, False)):
        with (
            pytest.raises(KeyboardInterrupt),
            write(recipe.model_copy(update=changes)) as work,
        ):
            assert work.resumed == resumed
            raise KeyboardInterrupt


def test_advice_leaves_out_what_is_done_already() -> None:
    small = TrainRecipe(
        batch_size=1, eval_batch_size=1, gradient_checkpointing=True, method="qlora"
    )
    text = advise_memory(small, 7, 90, None)
    assert "keep the result and the checkpoint: nothing, all are as small as they can be" in text
    assert "start over: a lower max_tokens, or a device with more memory" in text
    large = TrainRecipe(batch_size=9, packing=False, method="full")
    text = advise_memory(large, 7, 90, "here")
    assert "batch_size: 3 with gradient_accumulation: 3" in text
    assert "packing: true" in text
    assert "eval_batch_size: 64" in text
    assert "method: lora, method: qlora" in text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 TB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_every_way_of_running_out_is_explained(error: Exception) -> None:
    with pytest.raises(ModelError, match="buy more") as caught, explain_memory(lambda: "buy more"):
        raise error
    assert caught.value.__cause__ is error


def test_other_faults_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="something else"), explain_memory(lambda: ""):
        raise RuntimeError("something else")

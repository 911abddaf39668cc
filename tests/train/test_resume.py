"""A run killed anywhere ends, once it is started again, with the weights of one that was not."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from genrec.artifact import load_artifact
from genrec.errors import ModelError
from genrec.manifest import read_json, write_json
from genrec.train.recipe import TrainRecipe
from genrec.train.resume import (
    LEAVING,
    STATE_FILE,
    WRITING,
    check_processes,
    drop_checkpoints,
    find_checkpoint,
    point_best,
    publish_checkpoint,
)
from tests.train.made_inputs import Inputs, write_instructions
from tests.train.made_runs import command, environment


def make_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    best_path = None if best is None else f"/elsewhere/checkpoint-{best}"
    state = {"global_step": step, "best_global_step": best, "best_model_checkpoint": best_path}
    write_json(path / STATE_FILE, state)
    return path


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_whole_checkpoints_are_found_and_torn_ones_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint(tmp_path / "none") is None
    whole = make_checkpoint(tmp_path, 9)
    make_checkpoint(tmp_path, 10).joinpath(STATE_FILE).write_text('{"global_step": ')
    make_checkpoint(tmp_path / WRITING, 12)
    (tmp_path / LEAVING).mkdir()
    assert find_checkpoint(tmp_path, remove=False) == whole
    assert list_names(tmp_path) == [LEAVING, WRITING, "checkpoint-10", "checkpoint-9"]
    with caplog.at_level(logging.INFO):
        assert find_checkpoint(tmp_path) == whole
    assert "checkpoint-12 is half written and is removed" in caplog.text
    assert "checkpoint-10 is half written and is removed" in caplog.text
    assert list_names(tmp_path) == ["checkpoint-9"]


def test_a_checkpoint_gets_its_name_last_and_replaces_an_older_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    written = make_checkpoint(tmp_path / WRITING, 4)
    (written / "new").write_text("x")
    assert (publish_checkpoint(tmp_path, 4) / "new").read_text() == "x"
    assert not written.exists()
    assert not (tmp_path / LEAVING).exists()


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        make_checkpoint(tmp_path, step)
    drop_checkpoints(tmp_path, 3, best_step=8)
    assert list_names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-8"]
    drop_checkpoints(tmp_path, 1, best_step=8)
    assert list_names(tmp_path) == ["checkpoint-11", "checkpoint-8"]
    drop_checkpoints(tmp_path, 1, best_step=None)
    assert list_names(tmp_path) == ["checkpoint-11"]


def test_a_run_that_was_moved_finds_its_best_checkpoint(tmp_path: Path) -> None:
    best = make_checkpoint(tmp_path, 3)
    point_best(best)
    assert read_json(best / STATE_FILE)["best_model_checkpoint"] is None
    last = make_checkpoint(tmp_path, 6, best=3)
    point_best(last)
    assert read_json(last / STATE_FILE)["best_model_checkpoint"] == str(best)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / "rng_state.pth").touch()
    check_processes(path, 1, sharded=False)
    with pytest.raises(ModelError, match=r"had 1 process\(es\), but there are 2 with FSDP now"):
        check_processes(path, 2, sharded=True)
    (path / "rng_state.pth").unlink()
    for number in range(2):
        (path / f"rng_state_{number}.pth").touch()
    (path / "pytorch_model_fsdp.bin").touch()
    check_processes(path, 2, sharded=True)
    with pytest.raises(ModelError, match=r"had 2 process\(es\) with FSDP, but there are 4 now"):
        check_processes(path, 4, sharded=False)


# Updates of two batches, six an epoch; checkpoints after 3, 5, 6, 9, 10 and 11.
POINTS = "update:1 write:3 rename:5 update:7 drop:9 write:11 export"
LORA = {"method": "lora", "row_warmup": 0.4, "row_learning_rate": 0.03}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "n_passes"),
    [(LORA, 1), ({"method": "full"}, 1), ({"method": "lora"}, 3)],
    ids=["lora", "full", "passes"],
)
def test_killed_anywhere_the_run_ends_the_same(
    changes: dict[str, object],
    n_passes: int,
    bases: Callable[[str], Path],
    inputs: Inputs,
    recipe: TrainRecipe,
    tmp_path: Path,
) -> None:
    values = {"dropout": 0.1, "max_steps": 11, "save_every": 5.0, "eval_every": 3.0}
    values |= {"batch_size": 4, "gradient_accumulation": 2, "packing": True, **changes}
    recipe = recipe.model_copy(update=values)
    if n_passes > 1:
        made = [load_artifact(path) for path in (inputs.data, inputs.tokenizer)]
        rows = write_instructions(tmp_path / "rows", *made, n_passes=n_passes)
        inputs = replace(inputs, instructions=rows.path)
    for name, points in (("whole", ""), ("killed", POINTS)):
        done = subprocess.run(
            [sys.executable, *command(recipe, bases("qwen3"), inputs, tmp_path / name)],
            env=environment(KILL_AT=points),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for line in (
        "checkpoint-3 is half written and is removed",
        "checkpoint-5 is half written and is removed",
        "resuming from checkpoint-6",
        "resuming from checkpoint-9",
        "checkpoint-11 is half written and is removed",
    ):
        assert line in done.stderr
    files = ["model.safetensors"]
    files += ["adapter/adapter_model.safetensors"] if changes["method"] == "lora" else []
    for file in files:
        first, second = (load_file(tmp_path / name / file) for name in ("killed", "whole"))
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)

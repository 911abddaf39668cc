"""A process of a test that trains, possibly one of several, possibly killed on the way.

`KILL_AT` names where, one after another, each in a process that goes on from what the one before
left: `update:N`, `write:N` (while checkpoint N is written), `rename:N` (just before it is given its
name), `drop:N` (just after), `export`. The last process is not killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from genrec.train import step, trainer
from genrec.train.recipe import TrainRecipe

SHARDS = os.environ.get("ACCELERATE_USE_FSDP") == "true"


def pretend_gpus() -> None:
    """accelerate 1.15 shards where it takes the processes for GPUs' only; gloo does it on CPUs."""
    start = PartialState.__init__

    def begin(self: Any, *arguments: Any, **words: Any) -> None:
        start(self, *arguments, **words)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begin


def die(*_arguments: Any, **_words: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str) -> None:
    point, _, number = where.partition(":")
    training = trainer.CompletionTrainer
    if point == "update":
        training_step = training.training_step

        def train(self: Any, *arguments: Any, **words: Any) -> Any:
            if self.state.global_step == int(number):
                die()
            return training_step(self, *arguments, **words)

        training.training_step = train
    elif point == "export":
        step.export_model = die
    else:
        part = {
            "write": (training, "_save_rng_state"),
            "rename": (trainer, "publish_checkpoint"),
            "drop": (trainer, "drop_checkpoints"),
        }[point]
        inner = getattr(*part)

        def act(*arguments: Any, **words: Any) -> Any:
            if f"checkpoint-{number}" in " ".join(map(str, arguments)) or int(number) in [
                argument for argument in arguments if type(argument) is int
            ]:
                die()
            return inner(*arguments, **words)

        setattr(*part, act)


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("genrec").setLevel(logging.INFO)
    if SHARDS:
        pretend_gpus()
    recipe, base, *folders = sys.argv[1:]
    for where in os.environ.get("KILL_AT", "").split():
        # A fork has torch imported already.
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, where
            assert not (Path(folders[-1]) / "manifest.json").exists()
            continue
        arm(where)
        break
    step.make_model(TrainRecipe.model_validate_json(recipe), base, *map(Path, folders))


if __name__ == "__main__":
    main()

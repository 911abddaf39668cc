"""Training that runs out of memory: what is said, and what may change without starting over.

Owns which values of a recipe cost memory and do not change the result. Knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from genrec.errors import ModelError
from genrec.train.recipe import TrainRecipe

_SIGNS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def name_run(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with all values levelled that cost memory and do not change the result.

    Recipes that agree in it go on from one another's checkpoints. Rows are drawn an update at a
    time, so an update sees the same ones in whatever number of batches they come; what differs is
    the rounding of sums, and which inputs dropout leaves out.
    """
    unset = TrainRecipe()
    return recipe.model_copy(
        update={
            "batch_size": recipe.batch_size * recipe.gradient_accumulation,
            "gradient_accumulation": 1,
            "eval_batch_size": unset.eval_batch_size,
            "gradient_checkpointing": unset.gradient_checkpointing,
            "packing": unset.packing,
        }
    )


@contextmanager
def explain_memory(explain: Callable[[], str]) -> Iterator[None]:
    """A block in which running out of memory, GPU's or CPU's, is a ModelError that says more.

    Args:
        explain: the message; called when memory has run out.

    Raises:
        ModelError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(explain()) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        raise ModelError(explain()) from error


def advise_memory(recipe: TrainRecipe, update: int, longest: int, checkpoint: str | None) -> str:
    """What to do after memory ran out, and what is left of the run.

    Args:
        recipe: as it ran.
        update: how many updates were made.
        longest: tokens of the longest training row.
        checkpoint: the last one, where it lies; None if there is none.
    """
    kept = []
    if recipe.batch_size > 1:
        smaller = _find_half(recipe.batch_size)
        steps = recipe.gradient_accumulation * recipe.batch_size // smaller
        kept.append(f"batch_size: {smaller} with gradient_accumulation: {steps}")
    if not recipe.gradient_checkpointing:
        kept.append("gradient_checkpointing: true")
    if not recipe.packing:
        kept.append("packing: true")
    if recipe.eval_batch_size > 1:
        kept.append(f"eval_batch_size: {max(recipe.eval_batch_size // 2, 1)}")
    anew = ["a lower max_tokens"]
    if recipe.method == "full":
        anew.append("method: lora")
    if recipe.method != "qlora":
        anew.append("method: qlora")
    left = (
        f"the checkpoint {checkpoint} stays, and the same command goes on from it"
        if checkpoint
        else "there was no checkpoint yet (save_every makes more of them)"
    )
    return (
        f"out of memory at update {update} (batch_size {recipe.batch_size}, rows of up to "
        f"{longest} tokens); {left}. These keep the result and the checkpoint: "
        f"{', '.join(kept) or 'nothing, all are as small as they can be'}. These help more and "
        f"start over: {', '.join(anew)}, or a device with more memory"
    )


def _find_half(batch_size: int) -> int:
    """The largest size at most half of this one that as many whole batches make up."""
    return next(size for size in range(batch_size // 2, 0, -1) if batch_size % size == 0)

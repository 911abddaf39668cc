"""Which device a quantizer trains and encodes on.

Owns the names that a recipe may give. Knows nothing of what runs there.
"""

from __future__ import annotations

import re

import torch

from genrec.errors import RecipeError

_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")


def check_device(name: str, key: str) -> None:
    """Raise unless this names a device, whether or not this machine has it.

    Raises:
        RecipeError: any other name.
    """
    if not _NAMES.fullmatch(name):
        raise RecipeError(
            f"{key} is {name!r}, which is no device here; use auto, cpu, cuda or cuda:1"
        )


def find_device(name: str, key: str, *, or_other: bool = False) -> torch.device:
    """The device of that name; for `auto` the first GPU, or the CPU where there is none.

    Args:
        name: auto, cpu, cuda, or cuda with a number.
        key: where the name stands, for messages.
        or_other: take what `auto` would where this machine lacks that GPU.

    Raises:
        RecipeError: no such name, or no such GPU in this machine.
    """
    check_device(name, key)
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu":
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if name == "auto" or (or_other and number >= n_gpus):
        return torch.device("cuda:0" if n_gpus else "cpu")
    if number >= n_gpus:
        found = f"{n_gpus} of them" if n_gpus else "none"
        raise RecipeError(
            f"{key} is {name!r}, but torch sees no such GPU ({found} on this machine); use auto, "
            f"which takes what is there, or cpu"
        )
    return torch.device("cuda", number)

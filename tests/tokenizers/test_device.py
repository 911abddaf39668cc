from __future__ import annotations

import pytest
import torch

from genrec.errors import RecipeError
from genrec.tokenizers.quantizers.device import check_device, find_device


@pytest.fixture
def see_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says it has two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


@pytest.fixture
def see_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("see_none")
def test_without_a_gpu_only_the_cpu_is_found() -> None:
    assert find_device("auto", "x").type == "cpu"
    assert find_device("cpu", "x").type == "cpu"
    with pytest.raises(RecipeError, match=r"x is 'cuda:1', but torch sees no such GPU \(none.*cpu"):
        find_device("cuda:1", "x")
    assert find_device("cuda:1", "x", or_other=True).type == "cpu"


@pytest.mark.usefixtures("see_gpus")
def test_gpus_are_found_by_number() -> None:
    assert find_device("auto", "x") == torch.device("cuda", 0)
    assert find_device("cuda", "x") == torch.device("cuda", 0)
    assert find_device("cuda:1", "x") == torch.device("cuda", 1)
    assert find_device("cpu", "x").type == "cpu"
    with pytest.raises(RecipeError, match=r"no such GPU \(2 of them on this machine\)"):
        find_device("cuda:2", "x")
    assert find_device("cuda:2", "x", or_other=True) == torch.device("cuda", 0)
    assert find_device("cuda:1", "x", or_other=True) == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:x", "", "mps", "auto "])
def test_other_names_are_no_devices(name: str) -> None:
    with pytest.raises(RecipeError, match=r"rqvae\.device is .* use auto, cpu, cuda or cuda:1"):
        check_device(name, "rqvae.device")

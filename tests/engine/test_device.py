"""Device and precision follow fixed rules."""

from __future__ import annotations

import pytest
import torch

from anodiff.engine import device as module
from anodiff.engine.device import autocast, describe, resolve_device, resolve_precision
from anodiff.errors import ConfigError

CPU = torch.device("cpu")


def cuda(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_takes_the_first_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch, count: int, expected: str) -> None:
    cuda(monkeypatch, count)
    assert str(resolve_device("auto")) == expected


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, 2)
    assert str(resolve_device("cpu")) == "cpu"
    assert str(resolve_device("cuda")) == "cuda:0"
    assert str(resolve_device("cuda:1")) == "cuda:1"
    assert resolve_device(CPU) == CPU
    with pytest.raises(ConfigError, match="cuda:2 was asked for, found 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "cpu:0x"])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("machine", "found", "expected"),
    [
        ("x86_64", {"avx512_bf16": True}, "bf16"),
        ("AMD64", {"amx_bf16": True}, "bf16"),
        ("x86_64", {"avx2": True, "avx512_f": True}, "fp32"),
        ("aarch64", {"avx512_bf16": True}, "fp32"),
    ],
)
def test_auto_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, machine: str, found: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    cuda(monkeypatch, 1, capability)
    assert resolve_precision("auto", torch.device("cuda:0")) == expected


def test_explicit_precision_is_honoured_and_a_wrong_one_named() -> None:
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("fp32", CPU) == "fp32"
    with pytest.raises(ConfigError, match="found 'fp16'"):
        resolve_precision("fp16", CPU)


def test_autocast_runs_products_in_the_named_format() -> None:
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_describe_names_what_ran() -> None:
    assert describe(CPU, "fp32").keys() == {"device", "name", "precision", "torch"}

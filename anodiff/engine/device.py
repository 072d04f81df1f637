"""Which device and which precision a run uses: fixed rules, never timings."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import torch
from torch import Tensor

from anodiff.errors import ConfigError

Precision = Literal["fp32", "bf16"]


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that `name` asks for: "auto" (the first CUDA device if there is one, else the CPU), "cpu",
    "cuda[:N]".

    Raises:
        ConfigError: the name is unknown or that device is not in this machine.
    """
    if isinstance(name, torch.device):
        name = str(name)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (index == "" or index.isdigit()) or name.endswith(":"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= found:
        raise ConfigError(f"device: {name} was asked for, found {found} CUDA device{'' if found == 1 else 's'} here")
    return torch.device("cuda", int(index or 0))


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The number format of the network's convolutions and products: "fp32" or "bf16".

    "auto" is a fixed rule, so that two runs on the same hardware agree: bf16 on CUDA of compute capability 8.0 or
    more and on x86 CPUs with AVX512-BF16 or AMX-BF16 instructions, fp32 everywhere else. An explicit "bf16" is
    honoured on any device, slow or not. Everything outside the network stays float32 (tables float64).

    Raises:
        ConfigError: the name is none of auto, fp32, bf16.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision: expected auto, fp32 or bf16, found {name!r}")
    if name != "auto":
        return cast(Precision, name)
    return "bf16" if _has_bf16_units(device) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a network runs in `precision` on `device`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The values on the device, as they are where they are there already; nothing on the host waits for the copy.

    From the host to a GPU they go through pinned memory (a copy from any other makes the host wait until the GPU has
    done all it was given before), and their type is changed there, so that uint8 travels as uint8.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory().to(device, non_blocking=True)
    return values.to(device, dtype or values.dtype)


def describe(device: torch.device, precision: Precision) -> dict[str, str]:
    """What a report should say about where the numbers come from: device, name, precision, threads, torch version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {"device": str(device), "name": name, "precision": precision, "torch": torch.__version__}


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())

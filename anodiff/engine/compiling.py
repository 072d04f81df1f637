"""Compilation of a network for the one shape that it sees, where this machine can compile at all."""

from __future__ import annotations

import torch
from torch import nn


def compile_network(network: nn.Module, device: torch.device, *, frozen: bool) -> str:
    """Compiles a network in place, to happen at its first call; -> "" or the sentence that says why it is not done.

    Args:
        frozen: its weights are constants, which saves more time: for inference, not for training.
    """
    missing = _missing(device)
    if missing:
        return f"not compiled: {missing}; goes on without"
    # without the second, fused steps keep digits that bf16 rounds off between them, and scores move
    options = {"freezing": True, "emulate_precision_casts": True} if frozen else None
    network.compile(dynamic=False, options=options)
    return ""


def _missing(device: torch.device) -> str:
    """What torch's compiler would need here and does not find."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "expected triton for this GPU, found none"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "expected a C++ compiler (g++, or the one that CXX names), found none"
    return ""

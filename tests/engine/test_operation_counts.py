"""What a score costs in operations: counted, never timed, so that a slow machine cannot fail it nor a fast one pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anodiff.diffusion import karras_grid, sample_ddim, sample_dpmpp_2m
from anodiff.diffusion.noise import sample_noise
from anodiff.engine.inference import InferenceDenoiser
from anodiff.networks import UNet

#: operations that copy a tensor, or hand on the one they were given
MOVES = ("clone", "copy_", "_to_copy", "to", "contiguous", "reshape")
#: a value that the host waits for; ``item`` under inference mode
READS = ("_local_scalar_dense", "item")


class Counts(TorchDispatchMode):
    """Counts the operations that reach the device; of them copies, and values of float32 tensors read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        self.reads += name in READS and args[0].dtype == torch.float32
        result = func(*args, **(kwargs or {}))
        self.copies[name] += name in MOVES and (name == "copy_" or result.data_ptr() != args[0].data_ptr())
        return result


def counted(function: Any) -> Counts:
    with Counts() as counts:
        function()
    return counts


def test_a_copy_and_a_read_are_counted_and_what_only_looks_like_one_is_not() -> None:
    x = torch.ones(2, 3)
    with torch.inference_mode():
        found = counted(lambda: (x.to(torch.float32), x.reshape(3, 2), x.contiguous(), float(x.double()[0, 0])))
        assert (found.copies.total(), found.reads) == (1, 0)  # to float64
        found = counted(lambda: (x.clone(), x.T.reshape(6), x.T.contiguous(), float(x[0, 0])))
        assert (found.copies.total(), found.reads) == (3, 1)


class Half(nn.Module):
    """A denoiser of one operation."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x * 0.5


@pytest.mark.parametrize("sampler", [sample_ddim, sample_dpmpp_2m])
def test_a_step_of_a_chain_costs_the_same_at_any_length_and_never_asks_the_host(sampler: Any) -> None:
    denoiser = InferenceDenoiser(Half(), "cpu", network_batch=4)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    few, many = (counted(lambda n=n: sampler(denoiser, x, karras_grid(1.0, 0.01, n))) for n in (5, 25))
    per_step = (many.calls.total() - few.calls.total()) / 20
    assert per_step <= 20
    assert many.calls["_local_scalar_dense"] <= 26  # the grid, read once; a float64 a level
    assert many.reads == 0
    assert denoiser.calls == 4 * 30


def test_batches_cost_what_their_pieces_cost() -> None:
    def operations(rows: int) -> int:
        denoiser = InferenceDenoiser(Half(), "cpu", network_batch=4)
        return counted(lambda: denoiser(torch.ones(rows, 1, 8, 8), 0.5)).calls.total()

    one, eight = operations(4), operations(32)
    assert eight <= 8 * one


def test_noise_of_many_images_costs_the_operations_of_one() -> None:
    for family in ("gaussian", "simplex", "pyramid"):
        one, many = (
            counted(lambda n=n: sample_noise(family, torch.arange(n), (1, 16, 16))).calls.total()  # noqa: B023
            for n in (1, 16)
        )
        assert many <= 1.1 * one, family


def test_the_unet_makes_no_copies_beyond_its_layers() -> None:
    network = UNet(1, channels=(8, 16), blocks=1, attention=(False, False), stem=2).eval()
    denoiser = InferenceDenoiser(network, "cpu", "fp32", network_batch=2)
    x = torch.ones(2, 1, 16, 16)
    denoiser(x, 0.5)
    found = counted(lambda: denoiser(x, 0.5))
    convolutions = sum(found.calls[name] for name in ("convolution", "conv2d", "mkldnn_convolution"))
    assert convolutions > 10, found.calls
    assert found.copies.total() <= 3, found.copies  # channels last, into the stem's patches, and out of them

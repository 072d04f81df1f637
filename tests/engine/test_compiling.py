"""Compilation where it can be done, and a sentence where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from anodiff.config import parse_config
from anodiff.engine.compiling import compile_network
from anodiff.engine.inference import InferenceDenoiser
from anodiff.training import Trainer


class Scale(nn.Module):
    """A network of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def absent(*_: Any) -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_network_is_left_as_it_is_and_the_user_is_told() -> None:
    network = Scale()
    note = compile_network(network, torch.device("cpu"), frozen=True)
    assert "expected a C++ compiler" in note
    assert network._compiled_call_impl is None
    denoiser = InferenceDenoiser(network, "cpu", "fp32", network_batch=2, compiled=True)
    assert denoiser.notes == [note]
    assert not denoiser.compiled
    assert torch.equal(denoiser(torch.ones(2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.5))


def tiny(compiled: bool) -> Trainer:
    recipe = {
        "name": "tiny",
        "preprocess": {"size": [16, 16]},
        "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
        "training": {"batch_size": 4, "images": 400, "compiled": compiled, "warmup_images": 0},
    }
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Trainer(parse_config(recipe), images, images[:3], device=torch.device("cpu"), precision="fp32")


@pytest.mark.usefixtures("no_compiler")
def test_training_goes_on_without_a_compiler() -> None:
    trainer = tiny(compiled=True)
    assert len(trainer.notes) == 1
    assert torch.equal(trainer.step(), tiny(compiled=False).step())


@pytest.mark.slow
def test_a_compiled_training_step_is_the_same_step() -> None:
    plain, compiled = tiny(compiled=False), tiny(compiled=True)
    for _ in range(3):
        assert float(compiled.step()) == pytest.approx(float(plain.step()), rel=1e-4)
    assert compiled.validate() == pytest.approx(plain.validate(), rel=1e-4)
    assert set(compiled.tensors()["network"]) == set(plain.tensors()["network"])

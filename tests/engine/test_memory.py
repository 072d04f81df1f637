"""Memory counted by tensors, and the batch that it bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anodiff.config import parse_config
from anodiff.engine.inference import GIB, InferenceDenoiser
from anodiff.engine.memory import peak_bytes
from anodiff.errors import ConfigError


def test_the_peak_counts_what_lives_at_once_and_no_view() -> None:
    x = torch.ones(1000)
    assert peak_bytes(lambda: ((x * 2) + 1) * 3) == 2 * 4000
    assert peak_bytes(lambda: torch.cat([x * 2, x * 3])) == 4 * 4000
    assert peak_bytes(lambda: (x.view(10, 100).T, x[:5], x.mul_(1.0))) == 0


class Chain(nn.Module):
    """Whatever the depth, a row holds one value and the next one: 2 x 4 bytes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows.append(len(x))
        for _ in range(5):
            x = x * 0.9
        return x


def test_a_bound_makes_the_internal_batch_smaller_and_says_so() -> None:
    x = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    free = InferenceDenoiser(Chain(), "cpu", "fp32", network_batch=8)
    level = torch.ones(1)
    row = peak_bytes(lambda: Chain()(x[:1], level))
    assert row == 2 * 4 * 16 * 16
    network = Chain()
    bounded = InferenceDenoiser(network, "cpu", "fp32", network_batch=8, max_memory=3.5 * row / GIB)
    assert torch.allclose(bounded(x, 0.5), free(x, 0.5), rtol=1e-4)
    assert bounded.network_batch == 3
    assert network.rows == [1, 3, 3, 3, 3]
    assert "engine.network_batch=3" in bounded.notes[0]
    bounded(x, 0.5)
    assert len(bounded.notes) == 1
    assert network.rows.count(1) == 1
    assert bounded.calls == 24


def test_enough_memory_changes_nothing() -> None:
    plenty = InferenceDenoiser(Chain(), "cpu", "fp32", network_batch=8, max_memory=1.0)
    plenty(torch.zeros(9, 1, 8, 8), 0.5)
    assert plenty.network_batch == 8
    assert plenty.notes == []


def test_too_little_for_one_image_is_an_error_with_the_need() -> None:
    bounded = InferenceDenoiser(Chain(), "cpu", "fp32", network_batch=8, max_memory=1e-9)
    with pytest.raises(ConfigError, match=r"engine.max_memory: expected memory for one image .* found 1e-09 GiB"):
        bounded(torch.zeros(1, 1, 16, 16), 0.5)


def test_the_recipe_refuses_a_bound_of_nothing() -> None:
    with pytest.raises(ConfigError, match="max_memory"):
        parse_config({"name": "x", "engine": {"max_memory": 0}})

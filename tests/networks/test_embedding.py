"""What networks are told of the class: an entry each, one for none of them, and nothing new without classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from anodiff.networks import DiT, UNet
from anodiff.networks.embedding import NoiseEmbedding

NETWORKS: list[tuple[Any, int, dict[str, Any]]] = [
    (UNet, 2, {"channels": (8, 16), "blocks": 1, "attention": (False, False)}),
    (UNet, 3, {"channels": (8, 16), "blocks": 1, "attention": (False, False)}),
    (DiT, 2, {"width": 24, "depth": 2, "head_channels": 8}),
    (DiT, 3, {"width": 24, "depth": 2, "head_channels": 8}),
]


def awake(make: Any, dims: int, options: dict[str, Any], classes: int) -> UNet | DiT:
    torch.manual_seed(0)
    network = make(1, dims=dims, classes=classes, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def test_the_class_is_added_to_what_says_the_noise_level() -> None:
    told = NoiseEmbedding(16, classes=3)
    c_noise, label = torch.tensor([0.1, -0.4, 0.7]), torch.tensor([2, -1, 0])
    angle = c_noise[:, None] * told.get_buffer("ladder")
    waves = torch.cat([angle.cos(), angle.sin()], dim=1)
    assert told.classes is not None
    entries = told.classes.weight[[2, 3, 0]]  # the last of the four is for no label
    expected = F.silu(F.linear(F.silu(told.first(waves)), told.second.weight, told.second.bias) + entries)
    torch.testing.assert_close(told(c_noise, label), expected)
    assert torch.equal(told(c_noise), told(c_noise, torch.full((3,), -1)))


@pytest.mark.parametrize(("make", "dims", "options"), NETWORKS)
def test_each_row_is_of_its_own_class(make: Any, dims: int, options: dict[str, Any]) -> None:
    network = awake(make, dims, options, classes=2)
    x, c_noise = torch.randn(1, 1, *[6] * dims).expand(3, -1, *[6] * dims), torch.zeros(3)
    with torch.no_grad():
        found = network(x, c_noise, torch.tensor([0, 1, -1]))
        assert not any(torch.allclose(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        torch.testing.assert_close(network(x, c_noise)[0], found[2])
        assert not torch.equal(*(network.features(x, c_noise, torch.full((3,), k))[-1] for k in (0, 1)))


@pytest.mark.parametrize(("make", "dims", "options"), NETWORKS)
def test_without_classes_nothing_is_new(make: Any, dims: int, options: dict[str, Any]) -> None:
    """The same weights by the same names; a network with classes has one table more, and is the same at no class."""
    plain, told = awake(make, dims, options, 0), make(1, dims=dims, classes=2, **options).eval()
    assert told.state_dict().keys() - plain.state_dict().keys() == {"embedding.classes.weight"}
    told.load_state_dict(
        {**plain.state_dict(), "embedding.classes.weight": torch.zeros(3, told.embedding.second.out_features)}
    )
    x, c_noise = torch.randn(2, 1, *[6] * dims), torch.tensor([0.3, -0.2])
    with torch.no_grad():
        assert torch.equal(told(x, c_noise), plain(x, c_noise))
    with pytest.raises(ValueError, match="expected no label for a network without classes"):
        plain(x, c_noise, torch.zeros(2, dtype=torch.long))

"""The transformer: shapes by law, positions that any size agrees on, zero start, and equivalences between settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from anodiff.config import parse_config
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import ConfigError
from anodiff.model import build_denoiser, build_network
from anodiff.networks.dit import Block, DiT, positions
from anodiff.training import Trainer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def awake(net: DiT) -> DiT:
    """A network starts as the zero function; give it weights so that outputs mean something."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def small(dims: int = 2, in_channels: int = 1, out_channels: int | None = None, **options: Any) -> DiT:
    torch.manual_seed(1)
    return awake(DiT(in_channels, out_channels, dims=dims, **{"width": 24, "depth": 2, "head_channels": 8, **options}))


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 30), (1, 3)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_2d_size_comes_back(size: tuple[int, int], patch: int) -> None:
    x = torch.randn(2, 3, *size)
    assert small(in_channels=3, patch=patch)(x, torch.zeros(2)).shape == x.shape


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10)])
def test_any_3d_size_comes_back_without_the_context(size: tuple[int, int, int]) -> None:
    x = torch.randn(1, 3, *size)
    assert small(dims=3, in_channels=3, out_channels=1)(x, torch.zeros(1)).shape == (1, 1, *size)


def test_starts_as_the_zero_function_and_its_blocks_as_identities() -> None:
    net, x = DiT(1, width=16, depth=2, head_channels=8), torch.randn(2, 1, 16, 16)
    assert net(x, torch.zeros(2)).abs().max() == 0
    block, tokens = Block(16, 8, 4, 0.0), torch.randn(2, 5, 16)
    assert torch.equal(block(tokens, torch.randn(2, 16)), tokens)


def test_positions_are_sines_and_cosines_of_the_distance_from_the_centre() -> None:
    encoded = positions((3, 4), 8)
    assert encoded.shape == (12, 8)
    y, x = 1.0, -0.5  # the patch in row 2, column 1
    ladder = (1.0, 10_000.0**-0.5)
    expected = [math.sin(y * f) for f in ladder] + [math.cos(y * f) for f in ladder]
    expected += [math.sin(x * f) for f in ladder] + [math.cos(x * f) for f in ladder]
    np.testing.assert_allclose(encoded[2 * 4 + 1].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [((4, 6), (8, 10)), ((3, 5, 2), (5, 7, 4))])
def test_a_larger_image_adds_positions_at_its_rim_only(inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
    whole = positions(outer, 30).reshape(*outer, 30)
    for axis, (a, b) in enumerate(zip(inner, outer, strict=True)):
        whole = whole.narrow(axis, (b - a) // 2, a)
    torch.testing.assert_close(whole.reshape(-1, 30), positions(inner, 30), rtol=0, atol=0)
    assert len(positions(outer, 30).unique(dim=0)) == math.prod(outer)


def test_without_positions_patches_are_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention knows places by their encoding alone: swapped patches come out swapped only where there is none."""
    net, x = small(patch=4), torch.randn(1, 1, 8, 8)
    swapped = x.flip(2).unflatten(2, (2, 4)).flip(3).flatten(2, 3)  # the two rows of patches change places
    plain, moved = net(x, torch.zeros(1)), net(swapped, torch.zeros(1))
    assert not torch.allclose(moved[:, :, 4:], plain[:, :, :4], atol=1e-3)
    monkeypatch.setattr(
        "anodiff.networks.dit.positions", lambda grid, width, device: torch.zeros(math.prod(grid), width)
    )
    plain, moved = net(x, torch.zeros(1)), net(swapped, torch.zeros(1))
    torch.testing.assert_close(moved[:, :, 4:], plain[:, :, :4], rtol=1e-4, atol=1e-5)


def test_attention_equals_softmax_written_out() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 4, 4, 0.0).eval(), torch.randn(1, 6, 8)
    q, k, v = block.qkv(x).reshape(6, 3, 2, 4).permute(1, 2, 0, 3)
    weights = torch.softmax(torch.einsum("hic,hjc->hij", q, k) / 4**0.5, dim=-1)
    mixed = torch.einsum("hij,hjc->ihc", weights, v).reshape(1, 6, 8)
    torch.testing.assert_close(block._attend(x), block.out(mixed), rtol=1e-4, atol=1e-5)


def test_each_image_sees_its_own_noise_level() -> None:
    net, x = small(), torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1)
    both = net(x, torch.tensor([-0.5, 0.5]))
    assert not torch.allclose(both[0], both[1], atol=1e-4)
    torch.testing.assert_close(both[1:], net(x[1:], torch.tensor([0.5])), rtol=1e-4, atol=1e-5)


def test_features_are_maps_on_the_grid_of_patches() -> None:
    net = small(depth=4)
    maps = net.features(torch.randn(2, 1, 18, 32), torch.zeros(2))
    assert [tuple(m.shape) for m in maps] == [(2, 24, 5, 8)] * 3
    assert not torch.allclose(maps[0], maps[1])


def test_checkpointing_changes_no_gradient() -> None:
    x, c = torch.randn(2, 1, 8, 8), torch.zeros(2)
    gradients = []
    for checkpointing in (False, True):
        net = small(checkpointing=checkpointing).train()
        net(x, c).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(small().parameters()))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def recipe(tiny_recipe: dict[str, Any], **network: Any) -> dict[str, Any]:
    return {**tiny_recipe, "network": {"kind": "dit", "width": 32, "depth": 2, "head_channels": 8, **network}}


def test_a_row_has_the_same_bits_whatever_its_batch_mates(tiny_recipe: dict[str, Any]) -> None:
    denoiser = build_denoiser(parse_config(recipe(tiny_recipe)))
    awake(denoiser.network)  # type: ignore[arg-type]
    run = InferenceDenoiser(denoiser, "cpu", network_batch=4)
    x = torch.randn(6, 1, 16, 16)
    assert torch.equal(run(x, 0.5)[5], run(x[5:], 0.5)[0])


def test_a_recipe_builds_it_with_its_own_settings(tiny_recipe: dict[str, Any]) -> None:
    config = parse_config(recipe(tiny_recipe, patch=2))
    net = build_network(config.network, 2, dims=3)
    assert isinstance(net, DiT)
    assert (net.dims, net.patch, net.width, len(net.blocks)) == (3, 2, 32, 2)
    with pytest.raises(ConfigError, match="must divide the width, found 30"):
        parse_config(recipe(tiny_recipe, width=30))


def test_training_brings_the_loss_down(tiny_recipe: dict[str, Any]) -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centre = torch.rand(32, 2, 1, 1) * 16
    blobs = (2 * torch.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / 20) - 1)[:, None].float()
    values = recipe(tiny_recipe)
    values["training"] = {**values["training"], "images": 400, "lr": 3e-3}
    trained = Trainer(parse_config(values), blobs[:24], blobs[24:], device=torch.device("cpu"), precision="fp32")
    before = trained.validate()
    while not trained.finished:
        trained.step()
    assert trained.validate() < 0.75 * before


def test_wrong_rank_and_wrong_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        small()(torch.randn(1, 1, 8, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="head_channels"):
        DiT(1, width=30, head_channels=8)
    with pytest.raises(ValueError, match="dims"):
        DiT(1, dims=4)

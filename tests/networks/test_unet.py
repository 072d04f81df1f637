"""The U-Net: shapes by law, noise conditioning, feature levels, gradients, and equivalences between settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from anodiff.networks.grids import fold, unfold
from anodiff.networks.unet import WAVELENGTHS, UNet, waves


def awake(net: UNet) -> UNet:
    """A network starts as the zero function (zero-initialised ends); give it weights so that outputs mean something."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def small(dims: int = 2, **options: object) -> UNet:
    torch.manual_seed(1)
    settings: dict[str, object] = {"channels": (8, 16), "blocks": 1, "attention": (False, True), "head_channels": 8}
    return awake(UNet(options.pop("in_channels", 1), dims=dims, **{**settings, **options}))  # type: ignore[arg-type]


def test_fold_is_pixel_unshuffle_in_2d() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(fold(x, 2), F.pixel_unshuffle(x, 2))
    assert torch.equal(unfold(fold(x, 2), 2), x)


def test_fold_in_3d_keeps_each_voxel_in_its_block() -> None:
    x = torch.arange(2 * 4 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 4, 6)
    folded = fold(x, 2)
    assert folded.shape == (1, 16, 2, 2, 3)
    blocks = x.reshape(1, 2, 2, 2, 2, 2, 3, 2)
    assert torch.equal(folded[0, 5, 1, 0, 2], blocks[0, 0, 1, 1, 0, 0, 2, 1])
    assert torch.equal(unfold(folded, 2), x)


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 30)])
@pytest.mark.parametrize("stem", [1, 2, 4])
def test_any_2d_size_comes_back(size: tuple[int, int], stem: int) -> None:
    x = torch.randn(2, 3, *size)
    assert small(in_channels=3, stem=stem)(x, torch.zeros(2)).shape == x.shape


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10)])
def test_any_3d_size_comes_back(size: tuple[int, int, int]) -> None:
    x = torch.randn(1, 1, *size)
    assert small(dims=3, stem=2)(x, torch.zeros(1)).shape == x.shape


def test_starts_as_the_zero_function() -> None:
    net = UNet(1, channels=(8, 16), blocks=1, attention=(False, True))
    assert net(torch.randn(2, 1, 16, 16), torch.zeros(2)).abs().max() == 0


def test_each_image_sees_its_own_noise_level() -> None:
    net, x = small(), torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1)
    both = net(x, torch.tensor([-0.5, 0.5]))
    assert not torch.allclose(both[0], both[1], atol=1e-4)
    torch.testing.assert_close(both[1:], net(x[1:], torch.tensor([0.5])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [(-0.41, -0.40), (500.0, 501.0)])
def test_embedding_tells_neighbouring_levels_apart(values: tuple[float, float]) -> None:
    net, x = small(), torch.randn(1, 1, 16, 16)
    outputs = [net(x, torch.tensor([value])) for value in values]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_features_are_one_map_a_resolution_and_depend_on_the_image() -> None:
    net = small(stem=2)
    maps = net.features(torch.randn(2, 1, 32, 32), torch.zeros(2))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 16), (2, 16, 8, 8)]
    other = net.features(torch.randn(2, 1, 32, 32), torch.zeros(2))
    assert not torch.allclose(maps[0], other[0])


def test_checkpointing_changes_no_gradient() -> None:
    x, c = torch.randn(2, 1, 16, 16), torch.zeros(2)
    gradients = []
    for checkpointing in (False, True):
        net = small(checkpointing=checkpointing).train()
        net(x, c).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_channels_last_changes_no_result() -> None:
    net, x, c = small(), torch.randn(2, 1, 16, 16), torch.zeros(2)
    plain = net(x, c)
    fast = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), c)  # type: ignore[call-overload]
    torch.testing.assert_close(plain, fast, rtol=1e-4, atol=1e-5)


def test_attention_equals_softmax_written_out() -> None:
    from anodiff.networks.unet import SelfAttention

    torch.manual_seed(0)
    layer = SelfAttention(2, 8, 4).eval()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 8, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).reshape(3, 2, 4, 15)
    weights = torch.softmax(torch.einsum("hci,hcj->hij", q, k) / 4**0.5, dim=-1)
    mixed = torch.einsum("hij,hcj->hci", weights, v).reshape(1, 8, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.out(mixed), rtol=1e-4, atol=1e-5)


def test_wrong_rank_and_wrong_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        small()(torch.randn(1, 1, 8, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="one per resolution"):
        UNet(1, channels=(8, 16), attention=(True,))
    with pytest.raises(ValueError, match="dims"):
        UNet(1, dims=4)


@pytest.mark.parametrize(("dims", "grid", "step"), [(2, (5, 8), 2), (3, (4, 3, 6), 1)])
def test_places_are_waves_along_each_axis(dims: int, grid: tuple[int, ...], step: int) -> None:
    found = waves(grid, step)
    assert found.shape == (1, 2 * len(WAVELENGTHS) * dims, *grid)
    for voxel in ((0,) * dims, tuple(size - 1 for size in grid)):
        expected = []
        for axis, (place, size) in enumerate(zip(voxel, grid, strict=True)):
            assert axis < dims
            turns = [step * (place - (size - 1) / 2) / length for length in WAVELENGTHS]
            expected += [math.sin(2 * math.pi * turn) for turn in turns]
            expected += [math.cos(2 * math.pi * turn) for turn in turns]
        assert found[(0, slice(None), *voxel)].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_larger_image_adds_places_at_its_rim() -> None:
    assert torch.allclose(waves((12, 12), 2)[:, :, 2:10, 2:10], waves((8, 8), 2), atol=1e-6)


def test_with_position_the_same_content_is_not_the_same_elsewhere() -> None:
    x = torch.zeros(1, 1, 64, 64)  # the same everywhere, and the middle is far from the rim
    plain = {"channels": (8,), "attention": (False,), "stem": 2}
    without, with_it = (small(position=position, **plain)(x, torch.zeros(1))[0, 0] for position in (False, True))
    assert torch.allclose(without[30, 30], without[34, 38], atol=1e-5)
    assert (with_it[30, 30] - with_it[34, 38]).abs() > 1e-3


def test_without_position_there_is_no_weight_of_it() -> None:
    names = {name for name, _ in small(position=True).named_parameters()}
    assert names - {name for name, _ in small().named_parameters()} == {"place.weight"}

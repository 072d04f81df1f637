"""The factorised U-Net: attention over time against a loop in float64, frames apart at first, parts in their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anodiff.config import parse_config
from anodiff.errors import ConfigError
from anodiff.model import build_denoiser
from anodiff.networks import SpaceTimeUNet, UNet
from anodiff.networks.spacetime import TemporalAttention

SHAPE = {"channels": (8, 16), "blocks": 1, "attention": (False, True), "stem": 2, "head_channels": 8}


def awake(network: nn.Module) -> nn.Module:
    """Layers that start at zero would hide what they do."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network


def by_hand(layer: TemporalAttention, x: Tensor) -> Tensor:
    """One place after the other, one head after the other."""
    frames, c = layer.frames, x.shape[1]
    normed, out = layer.norm(x), x.clone()
    for clip in range(len(x) // frames):
        rows = slice(clip * frames, (clip + 1) * frames)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                q, k, v = layer.qkv(normed[rows, :, i, j] + layer.place).chunk(3, dim=1)
                heads = []
                for part in torch.arange(c).chunk(layer.heads):
                    weight = torch.softmax(q[:, part] @ k[:, part].T / len(part) ** 0.5, dim=1)
                    heads.append(weight @ v[:, part])
                out[rows, :, i, j] += layer.out(torch.cat(heads, dim=1))
    return out


@pytest.mark.parametrize(("channels", "heads"), [(16, 2), (20, 2), (8, 1)])
def test_attention_is_over_the_frames_of_a_clip_at_each_place(channels: int, heads: int) -> None:
    layer = awake(TemporalAttention(3, channels, 8)).double()
    assert layer.heads == heads
    x = torch.randn(6, channels, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=0, atol=1e-10)


def test_it_begins_as_the_u_net_of_each_frame() -> None:
    network = SpaceTimeUNet(3, 6, **SHAPE)
    awake(network.unet.outlet)
    x, c_noise = torch.randn(2, 6, 12, 16), torch.randn(2)
    plain = UNet(2, 2, **SHAPE)
    known = {name.replace("attention.0.", "attention."): value for name, value in network.unet.state_dict().items()}
    plain.load_state_dict({name: value for name, value in known.items() if name in plain.state_dict()})
    apart = [plain(x[:, 2 * k : 2 * k + 2], c_noise) for k in range(3)]
    torch.testing.assert_close(network(x, c_noise), torch.cat(apart, dim=1))


def test_frames_see_one_another_clips_do_not_and_parts_follow_one_another() -> None:
    network = awake(SpaceTimeUNet(2, 2, 4, **SHAPE)).eval()
    x, c_noise = torch.randn(2, 2, 8, 8), torch.randn(2)
    moved = x.clone()
    moved[0, 1] += 1
    with torch.no_grad():
        change = (network(moved, c_noise) - network(x, c_noise)).abs().amax(dim=(2, 3))
        each = network.unet(x.reshape(4, 1, 8, 8), c_noise.repeat_interleave(2))
        assert (change[0] > 1e-4).all()
        assert not change[1].any()
        torch.testing.assert_close(
            network(x, c_noise)[0], torch.stack([each[0, 0], each[1, 0], each[0, 1], each[1, 1]])
        )
    with pytest.raises(ValueError, match="share evenly"):
        SpaceTimeUNet(2, 3, **SHAPE)


def test_a_recipe_asks_for_it_by_the_mode_of_its_clips() -> None:
    recipe = {"name": "tiny", "preprocess": {"size": [16, 16]}, "network": {**SHAPE, "channels": [8, 16]}}
    config = parse_config(recipe | {"video": {"mode": "space-time", "past": 2}})
    denoiser = build_denoiser(config)
    assert isinstance(denoiser.network, SpaceTimeUNet)
    assert denoiser(torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.2])).shape == (2, 3, 16, 16)
    assert isinstance(build_denoiser(parse_config(recipe | {"video": {"mode": "joint"}})).network, UNet)
    with pytest.raises(ConfigError, match=r"space-time needs network\.kind unet"):
        parse_config(recipe | {"video": {"mode": "space-time"}, "network": {"kind": "dit"}})

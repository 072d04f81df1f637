"""One forward pass: MONAI's U-Net as it comes beside the same weights in our inference path, and our own networks.

    python -m benchmarks.speed.network

The peer is MONAI's DiffusionModelUNet in evaluation mode without gradients, nothing else done to it. Ours is the same
network inside `InferenceDenoiser` (its precision rule, channels last), our U-Net of as many weights and the same
channels, and our transformer of about as many weights. The results of the same weights are compared before they are
timed: in fp32 they agree to 1e-4, in bf16 to 2e-2 (relative L2). Prints a table, writes network.json beside this file.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from anodiff.engine.inference import InferenceDenoiser
from anodiff.networks import DiT, UNet
from benchmarks.speed.side_by_side import Comparison, device_of, finish, in_turns, options, require_equal

CHANNELS = (32, 64, 96)
SHAPES = ((8, 1, 64, 64), (4, 1, 128, 128))
WIDE, WIDE_SHAPE = (128, 256, 384), (64, 1, 128, 128)
#: width and depth of the transformer (patches of 4x4) of about as many weights, by the U-Net's channels
TRANSFORMERS = {CHANNELS: (128, 9), WIDE: (512, 9)}


def main(arguments: list[str] | None = None) -> list[Comparison]:
    """Measure, print, write."""
    parser = options(__doc__, "network", turns=15)
    parser.add_argument("--wide", action="store_true", help="128 channels, 128x128, batch 64 as well: for a GPU")
    parser.add_argument("--uncompiled", action="store_true", help="without the compiled rows, a minute each")
    chosen = parser.parse_args(arguments)
    device = device_of(chosen)
    torch.manual_seed(chosen.seed)
    works = [(CHANNELS, shape) for shape in SHAPES] + [(WIDE, WIDE_SHAPE)] * chosen.wide
    found = [each for channels, shape in works for each in compare(channels, shape, device, chosen)]
    finish(found, chosen.output, "network forward", device)
    return found


def compare(
    channels: tuple[int, int, int], shape: tuple[int, ...], device: torch.device, chosen: argparse.Namespace
) -> list[Comparison]:
    """The same weights in our path at its own precision and in fp32, then our U-Net and our transformer as they are and
    compiled, each beside MONAI's network."""
    peer = monai_network(channels).to(device)
    width, depth = TRANSFORMERS[channels]
    own: dict[str, nn.Module] = {
        "U-Net": UNet(1, channels=channels, blocks=2, attention=(False, False, True), stem=1),
        "DiT": DiT(1, width=width, depth=depth),
    }
    x, level = torch.randn(shape, device=device), torch.full((shape[0],), 0.5, device=device)
    t = torch.full((shape[0],), 250, device=device)

    @torch.no_grad()
    def theirs() -> Tensor:
        output: Tensor = peer(x, timesteps=t)
        return output

    expected = theirs()
    size = "x".join(str(side) for side in shape)
    rows = []
    for precision in dict.fromkeys((InferenceDenoiser(nn.Identity(), device).precision, "fp32")):
        copy = monai_network(channels)
        copy.load_state_dict(peer.state_dict())
        path = InferenceDenoiser(AtTimestep(copy), device, precision, network_batch=shape[0])
        error = require_equal(path(x, t.float()), expected, precision, f"MONAI's network, {size}")
        rows.append(
            in_turns(
                f"{size}, the same weights, {precision}", partial(path, x, t.float()), theirs, chosen.turns, device,
                distance=error, weights=count(peer),
            )
        )  # fmt: skip
    for name, network in own.items():
        randomise(network)
        for compiled in dict.fromkeys((False, not chosen.uncompiled)):
            path = InferenceDenoiser(network, device, network_batch=shape[0], compiled=compiled)
            work = f"{size}, our {name}, {path.precision}{', compiled' if path.compiled else ''}"
            rows.append(
                in_turns(
                    work, partial(path, x, level), theirs, chosen.turns, device,
                    weights=count(network), peer_weights=count(peer),
                )
            )  # fmt: skip
    return rows


class AtTimestep(nn.Module):
    """MONAI's network called as (x, t)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.unet(x, timesteps=t)
        return output


def monai_network(channels: tuple[int, ...]) -> nn.Module:
    """MONAI's U-Net with attention at the coarsest resolution, weights that are not zero anywhere."""
    from monai.networks.nets import DiffusionModelUNet

    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=channels,
        attention_levels=(False, False, True),
        num_res_blocks=2,
        num_head_channels=32,
    ).eval()
    randomise(network)
    return network


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Layers that start at zero get small weights: a network that returns zero agrees with anything."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            parameter.normal_(std=0.02)


def count(network: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()

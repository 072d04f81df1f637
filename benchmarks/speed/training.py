"""One training step: MONAI's U-Net in the loop of its tutorials beside our trainer.

    python -m benchmarks.speed.training

The peer: MONAI's DiffusionModelUNet as it comes, its DDPMScheduler's noise, eps loss, Adam, fp32, images already on the
device. Ours: `Trainer.step` with our U-Net of as many weights and the same channels, with all it does (drawing,
augmentation off, noise, precision rule, clipping, fused AdamW, averaged weights), as it is and with
`training.compiled`; then the same with our transformer of about as many weights. Prints a table, writes training.json
beside this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from anodiff.config import parse_config
from anodiff.engine.device import resolve_precision
from anodiff.training import Trainer
from benchmarks.speed.network import CHANNELS, TRANSFORMERS, count, monai_network
from benchmarks.speed.side_by_side import Comparison, device_of, finish, in_turns, options

#: name of ours -> the recipe's network
NETWORKS: dict[str, dict[str, Any]] = {
    "U-Net": {"channels": list(CHANNELS), "blocks": 2, "attention": [False, False, True], "stem": 1},
    "DiT": {"kind": "dit", "width": TRANSFORMERS[CHANNELS][0], "depth": TRANSFORMERS[CHANNELS][1]},
}


def main(arguments: list[str] | None = None) -> list[Comparison]:
    """Measure, print, write."""
    parser = options(__doc__, "training", turns=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--uncompiled", action="store_true", help="without the compiled rows, a minute each")
    chosen = parser.parse_args(arguments)
    device = device_of(chosen)
    torch.manual_seed(chosen.seed)
    images = torch.rand(4 * chosen.batch, 1, chosen.side, chosen.side) * 2 - 1
    fast = resolve_precision("auto", device)
    found = [
        compare(images, chosen.batch, device, chosen.turns, precision, compiled, name)
        for name in NETWORKS
        for precision, compiled in dict.fromkeys([(fast, False), (fast, not chosen.uncompiled), ("fp32", False)])
    ]
    finish(found, chosen.output, "one training step", device, batch=chosen.batch, side=chosen.side)
    return found


def compare(
    images: torch.Tensor, batch: int, device: torch.device, turns: int, precision: Any, compiled: bool, name: str
) -> Comparison:
    """One update of each in turns, ours of the named network; compiled before, where it is."""
    from monai.networks.schedulers import DDPMScheduler

    peer = monai_network(CHANNELS).to(device).train()
    optimizer = torch.optim.Adam(peer.parameters(), lr=1e-4)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    here = images[:batch].to(device)

    def theirs() -> None:
        optimizer.zero_grad(set_to_none=True)
        noise = torch.randn_like(here)
        t = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(original_samples=here, noise=noise, timesteps=t)
        F.mse_loss(peer(noisy, timesteps=t), noise).backward()
        optimizer.step()

    recipe = {
        "name": "speed",
        "preprocess": {"size": list(images.shape[2:])},
        "network": NETWORKS[name],
        "training": {"batch_size": batch, "images": 1_000_000, "compiled": compiled},
    }
    trainer = Trainer(parse_config(recipe), images, images[:batch], device=device, precision=precision)
    size = f"{images.shape[2]}x{images.shape[3]}"
    work = f"{batch} images of {size}, our {name}, {precision}{', compiled' * compiled}"
    return in_turns(work, trainer.step, theirs, turns, device, weights=count(trainer.network), peer_weights=count(peer))


if __name__ == "__main__":
    main()

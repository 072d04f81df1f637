"""Reconstruction from sigma = 1, to the same quality: MONAI's and diffusers' samplers beside ours, the same weights.

    python -m benchmarks.speed.reconstruct

Synthetic brain slices are noised to step 250 of the linear schedule and reconstructed by the deterministic flow. The
reference takes every step of the 1,000. A peer's distance to it (relative L2) sets the quality; ours is the least
number of calls of DPM-Solver++(2M) on a Karras grid that comes as near, with our inference path. Both sides run the
same weights of MONAI's DiffusionModelUNet, the peer's as it comes. Prints a table, writes reconstruct.json beside this
file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodiff.data.phantoms import make_phantom
from anodiff.diffusion import karras_grid, sample_ddim, sample_dpmpp_2m, step_grid
from anodiff.engine.inference import InferenceDenoiser
from anodiff.model import DiffusionModel
from benchmarks.speed.networks import as_it_comes, monai_model
from benchmarks.speed.side_by_side import Comparison, device_of, distance, finish, in_turns, options

START = 250
#: numbers of calls that are tried, each first in our own precision
CALLS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30, 40, 50, 60)


@dataclass(frozen=True)
class Peer:
    """A scheduler with its number of steps over the whole schedule; only those from START down are taken."""

    name: str
    scheduler: Any

    @property
    def steps(self) -> list[int]:
        """Timesteps, counted from 0, descending."""
        return [int(t) for t in self.scheduler.timesteps if int(t) <= START]


def main(arguments: list[str] | None = None) -> list[Comparison]:
    """Measure, print, write."""
    parser = options(__doc__, "reconstruct", turns=5)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where the trained network is kept")
    parser.add_argument("--images", type=int, default=12_000, help="training images of the network")
    parser.add_argument("--batch", type=int, default=8)
    chosen = parser.parse_args(arguments)
    device = device_of(chosen)
    model = monai_model(chosen.work, chosen.images, chosen.device)
    slices = [torch.from_numpy(make_phantom(10_000 + i, 64)[0]) for i in range(chosen.batch)]
    clean = torch.stack(slices).float()[:, None].to(device) / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(chosen.seed)).to(device)
    network = as_it_comes(model).to(device)
    found = [compare(peer, model, network, clean, noise, device, chosen.turns) for peer in peers()]
    facts = {"batch": chosen.batch, "training_images": chosen.images}
    finish(found, chosen.output, "reconstruction from sigma 1", device, **facts)
    return found


def compare(
    peer: Peer,
    model: DiffusionModel,
    network: nn.Module,
    clean: Tensor,
    noise: Tensor,
    device: torch.device,
    turns: int,
) -> Comparison:
    """The peer's reconstruction, and ours of the same distance to the reference."""
    schedule = model.schedule
    start = peer.steps[0]
    sigma, alpha = float(schedule.sigmas[start]), float(schedule.alphas[start])
    noisy = clean + sigma * noise
    exact = InferenceDenoiser(model.denoiser, device, "fp32", len(clean))
    reference = sample_ddim(exact, noisy, step_grid(schedule, start + 1, start + 1))

    def theirs() -> Tensor:
        return run(peer, network, alpha * noisy)

    quality = distance(theirs(), reference)
    lowest = float(schedule.sigmas[0])

    def sampler(path: InferenceDenoiser, calls: int) -> Callable[[], Tensor]:
        return lambda: sample_dpmpp_2m(path, noisy, karras_grid(sigma, lowest, calls))

    options_of_ours: Iterator[tuple[InferenceDenoiser, int, float]] = (
        (path, calls, distance(sampler(path, calls)(), reference))
        for path in (InferenceDenoiser(model.denoiser, device, network_batch=len(clean)), exact)
        for calls in CALLS
    )
    enough = next((each for each in options_of_ours if each[2] <= quality), None)
    if enough is None:
        raise SystemExit(
            f"{peer.name}: expected its distance of {quality:.2g} within {CALLS[-1]} calls, found none as near"
        )
    path, calls, ours = enough
    return in_turns(
        f"{peer.name}, {len(peer.steps)} calls; ours {calls}, {path.precision}", sampler(path, calls), theirs, turns,
        device, distance_peer=quality, distance_ours=ours, calls_peer=len(peer.steps), calls_ours=calls, sigma=sigma,
    )  # fmt: skip


@torch.no_grad()
def run(peer: Peer, network: nn.Module, x: Tensor) -> Tensor:
    """The loop of the peers' own tutorials, begun part of the way."""
    reset(peer)
    for t in peer.steps:
        eps = network(x, timesteps=torch.full((len(x),), t, device=x.device))
        out = peer.scheduler.step(eps, t, x)
        x = out[0] if isinstance(out, tuple) else out.prev_sample
    return x


def reset(peer: Peer) -> None:
    """A scheduler that remembers its last step starts anew, part of the way down."""
    if hasattr(peer.scheduler, "set_begin_index"):
        peer.scheduler.set_timesteps(len(peer.scheduler.timesteps))
        peer.scheduler.set_begin_index(len(peer.scheduler.timesteps) - len(peer.steps))


def peers() -> list[Peer]:
    """Their samplers at the settings people use: 50, 100 and 200 steps of 1,000, a quarter of which lie below START."""
    from monai.networks.schedulers import DDIMScheduler

    found = []
    for steps in (50, 100, 200):
        monai: Any = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        monai.set_timesteps(steps)
        found.append(Peer(f"MONAI DDIM of {steps}", monai))
    try:
        import diffusers
    except ImportError:
        return found
    for steps in (50, 100):
        schedulers: tuple[tuple[str, Any], ...] = (
            ("DDIM", diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)),
            ("DPM++", diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")),
        )
        for name, scheduler in schedulers:
            scheduler.set_timesteps(steps)
            found.append(Peer(f"diffusers {name} of {steps}", scheduler))
    return found


if __name__ == "__main__":
    main()

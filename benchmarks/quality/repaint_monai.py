"""RePaint (Lugmayr et al. 2022) as one writes it with MONAI: its scheduler, a network that predicts the clean image.

MONAI has no resampling, so its inferer's loop cannot be used; steps and noising are the scheduler's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Denoise = Callable[[Tensor, Tensor], Tensor]


class StepNetwork(nn.Module):
    """A denoiser D(x_0 + sigma n, sigma) as MONAI calls a network: model(x_t, timesteps) -> x_0 (prediction "sample").

    x_t = sqrt(a) x_0 + sqrt(1 - a) n with a = alphas_cumprod[t], so that sigma = sqrt((1 - a) / a).
    """

    def __init__(self, denoise: Denoise, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.denoise, self.alphas_cumprod, self.calls = denoise, alphas_cumprod, 0

    def forward(self, x: Tensor, timesteps: Tensor, context: Any = None) -> Tensor:
        """(N, C, *S), (N,) -> (N, C, *S)."""
        self.calls += len(x)
        share = self.alphas_cumprod.to(x)[timesteps]
        view = (-1,) + (1,) * (x.ndim - 1)
        return self.denoise(x / share.sqrt().view(view), ((1 - share) / share).sqrt())


def scheduler_to(sigma_max: float, steps: int) -> Any:
    """A DDPMScheduler of MONAI with so many linear steps whose last level is sigma_max, the highest the network knows.

    beta goes from 0.1 / steps (1e-4 at 1000, as in DDPM) to where the product of 1 - beta is 1 / (1 + sigma_max^2).
    """
    from monai.networks.schedulers import DDPMScheduler

    first = 0.1 / steps
    low, high = first, 0.999
    for _ in range(60):
        last = (low + high) / 2
        left = float(torch.log1p(-torch.linspace(first, last, steps, dtype=torch.float64)).sum())
        low, high = (last, high) if left > -math.log1p(sigma_max**2) else (low, last)
    return DDPMScheduler(
        num_train_timesteps=steps,
        schedule="linear_beta",
        beta_start=first,
        beta_end=last,
        prediction_type="sample",
    )


def walk(steps: int, jump: int, repeats: int) -> list[int]:
    """Noising steps of x in the order they are visited, from ``steps`` to 0 (Lugmayr et al. 2022, appendix).

    From 1, 1 + jump, ... the chain goes ``jump`` steps up again, ``repeats`` - 1 times each.
    """
    left = dict.fromkeys(range(1, steps - jump + 1, jump), repeats - 1)
    path, t = [steps], steps
    while t > 0:
        t -= 1
        path.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            path += range(t + 1, t + jump + 1)
            t += jump
    return path


@torch.no_grad()
def repaint(
    denoise: Denoise,
    images: Tensor,
    missing: Tensor,
    *,
    sigma_max: float,
    mean: Tensor,
    steps: int = 250,
    jump: int = 10,
    repeats: int = 10,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Images (N, C, *S) filled where missing (N, 1, *S) is True, and network calls an image.

    Downwards, what is known is noised to the new level and pasted (equation 8); upwards, one step of the forward
    process (line 9 of algorithm 1). x_t here is the image after t noising steps, t = 1 being the scheduler's step 0.
    ``mean`` (1, C, *S), the data's, is about what the chain starts, as ours do: at sigma_max it is not yet drowned.
    """
    scheduler = scheduler_to(sigma_max, steps)
    network = StepNetwork(denoise, scheduler.alphas_cumprod.clone())
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(images.shape, generator=generator)

    left = float(scheduler.alphas_cumprod[-1])
    x, before = math.sqrt(left) * mean + math.sqrt(1 - left) * noise(), steps
    for t in walk(steps, jump, repeats)[1:]:
        if t < before:
            index = torch.full((len(x),), before - 1)
            x, _ = scheduler.step(network(x, index), before - 1, x, generator=generator)
            known = images if t == 0 else scheduler.add_noise(images, noise(), torch.full((len(x),), t - 1))
            x = torch.where(missing, x, known)
        else:
            beta = float(scheduler.betas[before])
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise()
        before = t
    return x, network.calls // len(images)

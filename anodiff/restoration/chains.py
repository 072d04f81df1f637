"""Chains of noise levels in batches of one shape, each row with noise of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anodiff.diffusion import sample_noise
from anodiff.diffusion.samplers import NoiseSource
from anodiff.errors import ConfigError
from anodiff.restoration.gradients import GradientDenoiser, WindowGradientDenoiser

#: start and end of a chain, where the recipe does not say what the network has seen
SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
#: how far into the tails of its training levels a network is trusted, in deviations of their logarithm
TRUSTED_DEVIATIONS = 2.5
#: draws of one chain; sample k of an image begins at draw k * CHAIN_DRAWS
CHAIN_DRAWS = 1 << 16
#: levels of the counter: the chain's own noise, and what a solver needs beside it
CHAIN, BESIDE = 0, 1


@dataclass(frozen=True)
class Rows:
    """The rows of one internal batch: which image each belongs to, its key, and the number of its chain."""

    image: Tensor
    keys: Tensor
    chain: Tensor
    shape: tuple[int, ...]
    family: str
    scale: str

    def source(self, level: int = CHAIN) -> NoiseSource:
        """The noise of a sampler's steps, (rows, C, *S) of each draw."""
        return lambda draw: sample_noise(
            self.family, self.keys, self.shape, level=level, draw=self.chain * CHAIN_DRAWS + draw, scale=self.scale
        )


def run_chains(
    denoiser: GradientDenoiser | WindowGradientDenoiser,
    chain: Callable[[Rows], Tensor],
    keys: Tensor,
    samples: int,
    shape: tuple[int, ...],
    family: str,
    scale: str,
) -> tuple[Tensor, int, int]:
    """``samples`` chains of each key (N,) -> (N, samples, C, *S), denoiser calls and gradients a chain.

    ``chain`` is given exactly ``chain_rows`` rows (as many as the network sees; of a volume in windows one), the last
    batch filled up with copies, so that not only the network but all arithmetic has one shape, and a row the same bits
    whatever its batch mates are.
    """
    total, batch = len(keys) * samples, denoiser.chain_rows
    calls, gradients = denoiser.calls, denoiser.gradients
    pieces = []
    for first in range(0, total, batch):
        row = torch.arange(first, first + batch).clamp(max=total - 1)
        image, device = row // samples, denoiser.device
        rows = Rows(image, keys[image].to(device), (row % samples).to(device), shape, family, scale)
        pieces.append(chain(rows)[: total - first].clone())
    padded = len(pieces) * batch
    drawn = torch.cat(pieces).reshape(len(keys), samples, *shape)
    return drawn, (denoiser.calls - calls) // padded, (denoiser.gradients - gradients) // padded


def trained_levels(diffusion: Any, schedule: Any = None) -> tuple[float, float]:
    """(highest, lowest) noise level that a network of this recipe has learnt; ``diffusion``: its section, or None."""
    high, low = SIGMA_MAX, SIGMA_MIN
    if schedule is not None:
        high, low = min(high, schedule.sigma_max), max(low, schedule.sigma_min)
    sigma = getattr(diffusion, "sigma", None)
    if sigma is not None and sigma.kind == "lognormal":
        reach = TRUSTED_DEVIATIONS * sigma.std
        high, low = min(high, math.exp(sigma.mean + reach)), max(low, math.exp(sigma.mean - reach))
    elif sigma is not None and sigma.kind == "loguniform":
        high, low = min(high, sigma.high), max(low, sigma.low)
    elif sigma is not None and sigma.kind == "fixed":
        raise ConfigError("a model trained on one noise level is a denoising auto-encoder: it has no chain of levels")
    return high, min(low, high / 4)


def number_keys(numbers: Sequence[int], seed: int) -> Tensor:
    """(N,) int64 keys of generated images by their numbers and the seed."""
    words = (f"generate:{int(seed)}:{number}".encode() for number in numbers)
    digests = (hashlib.blake2b(word, digest_size=8).digest() for word in words)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)

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
from anodiff.diffusion.samplers import Callback, NoiseSource, StepState
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
#: rows of a chain on a CPU, see `network_rows`
CPU_ROWS = 1

#: is told how many steps of a chain are done
Tell = Callable[[int], None]


@dataclass(frozen=True)
class ChainStep:
    """How far chains are: ``step`` of ``steps`` steps are done of batch ``batch`` of ``batches``, counted from 1."""

    step: int
    steps: int
    batch: int = 1
    batches: int = 1

    @property
    def last(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.steps and self.batch >= self.batches

    def __str__(self) -> str:
        batch = f" of batch {self.batch}/{self.batches}" if self.batches > 1 else ""
        return f"{self.step}/{self.steps}{batch}"


#: is called after every step of a chain; what it raises ends the chain. On CUDA a step is done when it is queued.
OnStep = Callable[[ChainStep], None]


#: is shown the state of a batch after a step, with the number (rows,) of the image that each row is of; the last batch
#: is filled up with copies
OnState = Callable[[Tensor, StepState], None]


@dataclass(frozen=True)
class Rows:
    """The rows of one internal batch: which image each belongs to, its key, and the number of its chain.

    antithetic: every second chain of an image has the noise of the one before it with the opposite sign.
    """

    image: Tensor
    keys: Tensor
    chain: Tensor
    shape: tuple[int, ...]
    family: str
    scale: str
    tell: Tell | None = None
    antithetic: bool = False

    def source(self, level: int = CHAIN) -> NoiseSource:
        """The noise of a sampler's steps, (rows, C, *S) of each draw."""
        chain = self.chain // 2 if self.antithetic else self.chain
        sign = (1 - 2 * (self.chain % 2)).view(-1, *[1] * len(self.shape)) if self.antithetic else 1

        def noise(draw: int) -> Tensor:
            counter = chain * CHAIN_DRAWS + draw
            return sign * sample_noise(self.family, self.keys, self.shape, level=level, draw=counter, scale=self.scale)

        return noise


def run_chains(
    denoiser: GradientDenoiser | WindowGradientDenoiser,
    chain: Callable[[Rows], Tensor],
    keys: Tensor,
    samples: int,
    shape: tuple[int, ...],
    family: str,
    scale: str,
    steps: int = 0,
    on_step: OnStep | None = None,
    antithetic: bool = False,
) -> tuple[Tensor, int, int]:
    """``samples`` chains of each key (N,) -> (N, samples, C, *S), denoiser calls and gradients a chain.

    ``chain`` is given exactly ``chain_rows`` rows (as many as the network sees; of a volume in windows one), the last
    batch filled up with copies, so that not only the network but all arithmetic has one shape, and a row the same bits
    whatever its batch mates are. It hands ``watched(rows.tell)`` to its sampler, so that ``on_step`` hears of each of
    its ``steps`` steps.
    """
    total, batch = len(keys) * samples, denoiser.chain_rows
    calls, gradients = denoiser.calls, denoiser.gradients
    pieces = []
    for number, first in enumerate(range(0, total, batch), 1):
        row = torch.arange(first, first + batch).clamp(max=total - 1)
        image, device = row // samples, denoiser.device
        tell = teller(on_step, steps, number, -(-total // batch))
        rows = Rows(image, keys[image].to(device), (row % samples).to(device), shape, family, scale, tell, antithetic)
        pieces.append(chain(rows)[: total - first].clone())
    padded = len(pieces) * batch
    drawn = torch.cat(pieces).reshape(len(keys), samples, *shape)
    return drawn, (denoiser.calls - calls) // padded, (denoiser.gradients - gradients) // padded


def teller(on_step: OnStep | None, steps: int, batch: int = 1, batches: int = 1) -> Tell | None:
    """What turns the number of steps done in one batch into a call of ``on_step``; None where nobody listens."""
    if on_step is None:
        return None
    return lambda step: on_step(ChainStep(step, steps, batch, batches))


def watched(tell: Tell | None, callback: Callback | None = None, before: int = 0) -> Callback | None:
    """A sampler's callback that does what ``callback`` does, then tells; before: steps that the chain had done."""
    if tell is None:
        return callback

    def after(state: StepState) -> Tensor | None:
        replaced = None if callback is None else callback(state)
        tell(before + state.i + 1)
        return replaced

    return after


def network_rows(asked: int | None, recipe: int, device: torch.device) -> int:
    """Rows of a chain: those asked for, else the recipe's on CUDA and at most CPU_ROWS on a CPU.

    A recipe's number is chosen for CUDA. On a CPU a row that only fills up a batch costs about as much as one that is
    wanted: at 128x128, 2.8 million parameters, one thread, a call takes 46, 41 and 37 ms a row at 1, 2 and 4 rows, with
    its gradient 105, 90 and 95 ms. So one image is never padded there, for which many cost a tenth to a quarter more.
    """
    if asked is not None:
        return asked
    return min(recipe, CPU_ROWS) if device.type == "cpu" else recipe


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

"""Training of a denoiser on normal images: counted in images, every random number a function of (seed, count).

Because nothing random depends on what was drawn before, a resumed run repeats an uninterrupted one exactly, and two
processes with half the batch each see what one process with the whole batch sees.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anodiff.config import AnodiffConfig
from anodiff.diffusion import NO_LABEL, Denoiser, NoiseSchedule
from anodiff.diffusion.learned_schedule import LearnedSchedule
from anodiff.diffusion.noise import sample_noise
from anodiff.diffusion.objective import (
    SigmaDistribution,
    denoising_loss,
    draw_sigma,
    hybrid_loss,
    loss_weight,
    sigma_distribution,
    stratified_uniform,
    within_foreground,
)
from anodiff.engine.compiling import compile_network
from anodiff.engine.device import Precision, autocast, to_device
from anodiff.errors import TrainingError
from anodiff.model import build_denoiser, schedule_of
from anodiff.training.augment import NUMBERS
from anodiff.training.ema import EMA
from anodiff.training.examples import Drawn, Examples, ImageExamples
from anodiff.training.masking import masked, random_boxes, random_parts
from anodiff.training.processes import Processes

#: how often (in updates) the loss is brought to the host, shown and checked
LOG_EVERY = 10
#: streams of random numbers, kept apart
NOISE, BATCH, ORDER, VALIDATION, LABEL = 1, 2, 3, 4, 5


def mix(*numbers: int) -> int:
    """A 62-bit seed from a few integers (SplitMix64 finaliser over their sum of products)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 2


def distribution_of(config: AnodiffConfig) -> SigmaDistribution:
    """The noise levels a recipe trains on."""
    sigma = config.diffusion.sigma
    if sigma.kind == "lognormal":
        return sigma_distribution("lognormal", mean=sigma.mean, std=sigma.std)
    if sigma.kind == "loguniform":
        return sigma_distribution("loguniform", sigma_min=sigma.low, sigma_max=sigma.high)
    if sigma.kind == "fixed":
        return sigma_distribution("fixed", sigma=sigma.value)
    return sigma_distribution("uniform-t", schedule_of(config))


@dataclass
class LogRow:
    """One line of ``log.csv``; loss is the mean since the last line, validation is None between validations."""

    images: int
    loss: float
    validation_loss: float | None
    lr: float
    images_per_second: float
    seconds: float


@dataclass
class State:
    """What a checkpoint holds besides the tensors."""

    images_seen: int = 0
    seconds: float = 0.0
    log: list[LogRow] = field(default_factory=list)


class Trainer:
    """Trains ``config`` on ``examples``; ``validation`` is held out.

    examples: images (N, C, *S) in [-1, 1], kept in memory and augmented as the recipe says, or any `Examples`.
    validation: images (M, C, *S), or a `Drawn` where examples have a context or classes.

    ``step`` makes one update over ``batch_size * accumulate * processes`` images. ``notes``: sentences on what was not
    done as asked.
    """

    def __init__(
        self,
        config: AnodiffConfig,
        examples: Tensor | Examples,
        validation: Tensor | Drawn,
        *,
        device: torch.device,
        precision: Precision,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.processes = processes or Processes()
        self.examples: Examples = ImageExamples(examples, config.augment) if isinstance(examples, Tensor) else examples
        held = Drawn(validation) if isinstance(validation, Tensor) else validation
        if (held.label is None) != (config.conditioning is None):
            found = "none" if held.label is None else "some"
            raise TrainingError(f"expected labels for a recipe with conditioning alone, found {found}")
        self.validation = held.rows(slice(config.training.validation_images)).to(device)
        torch.manual_seed(mix(config.training.seed, 0))
        layout = torch.channels_last if held.clean.ndim == 4 else torch.channels_last_3d
        self.denoiser = build_denoiser(config).to(device)
        self.network: nn.Module = self.denoiser.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.averaged: Denoiser = copy.deepcopy(self.denoiser)
        training = config.training
        self.ema = EMA(self.network, self.averaged.network, training.ema_halflife_images, training.ema_rampup)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay, fused=True
        )
        self.distribution = distribution_of(config)
        learned = config.diffusion.schedule == "learned"
        self.schedule = self.network.get_submodule("schedule") if learned else schedule_of(config)
        # compiled after the averaged copy is made, whose batches are of other sizes
        note = compile_network(self.network, device, frozen=False) if training.compiled else ""
        self.notes = [note] if note else []
        self.state = State()

    @property
    def images_per_update(self) -> int:
        """Images one update consumes, over all processes."""
        training = self.config.training
        return training.batch_size * training.accumulate * self.processes.world

    @property
    def finished(self) -> bool:
        """True when the recipe's number of images has been seen."""
        return self.state.images_seen >= self.config.training.images

    def learning_rate(self, images_seen: int) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        training = self.config.training
        warm = min(1.0, (images_seen + self.images_per_update) / max(training.warmup_images, 1))
        done = min(1.0, images_seen / training.images)
        return training.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def step(self) -> Tensor:
        """One update; returns its mean loss as a tensor on the device (no wait for the host)."""
        training, seen = self.config.training, self.state.images_seen
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(seen)
        torch.manual_seed(mix(training.seed, BATCH, seen, self.processes.rank))  # dropout
        rows, u_sigma, u_augment = self._plan(seen)
        total = torch.zeros((), device=self.device)
        for part in range(training.accumulate):
            chosen = slice(part * training.batch_size, (part + 1) * training.batch_size)
            loss = self._loss(rows[chosen], u_sigma[chosen], u_augment[chosen]).mean() / training.accumulate
            loss.backward()
            total += loss.detach()
        if isinstance(self.schedule, LearnedSchedule):
            torch.log1p(self.schedule.bound(self.config.diffusion.num_steps)).backward()
        self.processes.average_gradients(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), training.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.images_seen += self.images_per_update
        self.ema.update(self.images_per_update, self.state.images_seen)
        return self.processes.average(total)

    def run(
        self,
        *,
        on_log: Callable[[LogRow], None],
        on_validation: Callable[[Trainer], None],
        on_tick: Callable[[Trainer], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Train to the end of the recipe; True when it got there, False when ``should_stop`` said so.

        ``on_log`` gets every log line, ``on_validation`` is called after each validation, ``on_tick`` at every log line
        (checkpoints). Raises TrainingError on a non-finite loss or weight, before anything is written.
        """
        training = self.config.training
        while not self.finished:
            start = time.monotonic()
            losses: list[Tensor] = []
            before = self.state.images_seen
            while len(losses) < LOG_EVERY and not self.finished:
                losses.append(self.step())
            loss = float(torch.stack(losses).mean())
            if not math.isfinite(loss):
                raise TrainingError(self._diverged(f"{loss}", "a finite loss"))
            self.require_finite()  # the last update may have broken what its loss did not show yet
            seconds = time.monotonic() - start
            self.state.seconds += seconds
            seen = self.state.images_seen
            every = training.validate_every_images
            validate = self.finished or seen // every > before // every
            row = LogRow(
                images=seen,
                loss=loss,
                validation_loss=self.validate() if validate and self.processes.first else None,
                lr=self.learning_rate(seen),
                images_per_second=(seen - before) / max(seconds, 1e-9),
                seconds=self.state.seconds,
            )
            self.state.log.append(row)
            if self.processes.first:
                on_log(row)
                if validate:
                    on_validation(self)
            on_tick(self)
            if self.processes.any(should_stop()) and not self.finished:
                return False
        return True

    @torch.no_grad()
    def validate(self) -> float:
        """Mean weighted loss of the averaged weights on the held-out normals, at fixed noise and noise levels."""
        n = len(self.validation.clean)
        generator = torch.Generator().manual_seed(mix(self.config.training.seed, VALIDATION))
        u = stratified_uniform(n, generator)
        rows = torch.arange(n)
        total = 0.0
        size = self.config.training.batch_size
        for start in range(0, n, size):
            part = slice(start, start + size)
            keys = self._keys(rows[part], VALIDATION)
            total += float(self._denoising_loss(self.averaged, self.validation.rows(part), u[part], keys).sum())
        return total / n

    def require_finite(self) -> None:
        """Raises TrainingError where a weight, averaged or not, is NaN or infinite."""
        for module in (self.averaged.network, self.network):
            if not bool(torch.stack([p.isfinite().all() for p in module.parameters()]).all()):
                raise TrainingError(self._diverged("weights that are not finite", "finite weights"))

    def _diverged(self, found: str, expected: str) -> str:
        return (
            f"training stopped after {self.state.images_seen} images: expected {expected}, found {found}; "
            f"try --set training.lr={self.config.training.lr / 3:.1g}, a longer training.warmup_images, or --precision "
            "fp32, and start anew or from the last checkpoint"
        )

    def _plan(self, seen: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's part of the update that starts at image ``seen``: row counters, and its uniform numbers."""
        training = self.config.training
        mine = training.batch_size * training.accumulate
        world, rank = self.processes.world, self.processes.rank
        generator = torch.Generator().manual_seed(mix(training.seed, BATCH, seen))
        u_sigma = stratified_uniform(mine, generator, rank, world)
        u_augment = torch.rand(mine * world, NUMBERS, generator=generator)[rank * mine : (rank + 1) * mine]
        rows = torch.arange(seen + rank * mine, seen + (rank + 1) * mine)
        return rows, u_sigma, u_augment

    def _pick(self, rows: Tensor) -> Tensor:
        """Which examples the given row counters mean: every epoch is a permutation of its own."""
        n = len(self.examples)
        index = torch.empty(len(rows), dtype=torch.long)
        for epoch in torch.unique(rows // n).tolist():
            generator = torch.Generator().manual_seed(mix(self.config.training.seed, ORDER, epoch))
            order = torch.randperm(n, generator=generator)
            here = rows // n == epoch
            index[here] = order[rows[here] % n]
        return index

    def _keys(self, rows: Tensor, stream: int) -> Tensor:
        """Noise keys of row counters (N,) int64 on the device."""
        seed = self.config.training.seed
        keys = torch.tensor([mix(seed, stream, row) for row in rows.tolist()], dtype=torch.long)
        return to_device(keys, self.device)

    def _uniform(self, rows: Tensor, stream: int) -> Tensor:
        """A number in [0, 1) of each row counter, (N,) on the device."""
        seed = self.config.training.seed
        return to_device(torch.tensor([mix(seed, stream, row) / 2**62 for row in rows.tolist()]), self.device)

    def _loss(self, rows: Tensor, u_sigma: Tensor, u_augment: Tensor) -> Tensor:
        drawn = self.examples.draw(self._pick(rows), u_augment, self.device)
        if self.config.conditioning is not None and drawn.label is not None:
            kept = self._uniform(rows, LABEL) >= self.config.conditioning.drop
            drawn = replace(drawn, label=drawn.label.where(kept, NO_LABEL))
        loss = self._denoising_loss(self.denoiser, drawn, u_sigma, self._keys(rows, NOISE))
        if isinstance(self.schedule, LearnedSchedule):
            sigma, weight = self._levels(u_sigma)
            self.schedule.observe(sigma, loss.detach() / weight.to(loss))
        return loss

    def _levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels (N,) at probabilities u, and the weight of each in the loss."""
        diffusion = self.config.diffusion
        sigma = draw_sigma(self.distribution, u)
        return sigma, loss_weight(diffusion.weight, sigma, sigma_data=diffusion.sigma_data)

    def _denoising_loss(self, denoiser: Denoiser, drawn: Drawn, u: Tensor, keys: Tensor) -> Tensor:
        diffusion, clean = self.config.diffusion, drawn.clean
        noise = sample_noise(diffusion.noise, keys, tuple(clean.shape[1:]), scale=diffusion.noise_scale)
        shown, where = clean, None
        if diffusion.noise_where == "foreground":
            noise = within_foreground(noise, clean)
        elif diffusion.noise_where == "box":
            where = random_boxes(clean.shape[2:], keys)
            noise = noise * where
        elif diffusion.noise_where == "parts":
            noise = noise * random_parts(clean.shape[2:], keys)
        if diffusion.mask != "none":
            shown = masked(clean, diffusion.mask, keys)
        sigma, weight = self._levels(u)
        with autocast(self.device, self.precision):
            if isinstance(self.schedule, NoiseSchedule) and denoiser.learned_variance:
                learned = partial(denoiser.with_variance, context=self.context(drawn), label=drawn.label)
                return hybrid_loss(learned, clean, sigma, noise, weight, self.schedule)
            sigma, weight = to_device(sigma, self.device), to_device(weight, self.device)
            given = denoiser.given(self.context(drawn), drawn.label)
            return denoising_loss(given, clean, sigma, noise, weight, shown=shown, where=where)

    def context(self, drawn: Drawn) -> Tensor | None:
        """What the denoiser is given beside the noisy image: the noise-free one, or what was drawn with it."""
        return drawn.clean if self.denoiser.sees_image else drawn.context

    def tensors(self) -> dict[str, Any]:
        """Weights, averaged weights and optimiser state, for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "average": self.averaged.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, tensors: dict[str, Any], state: State) -> None:
        """Continue from a checkpoint of the same recipe."""
        self.network.load_state_dict(tensors["network"])
        self.averaged.network.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.state = state

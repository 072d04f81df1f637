"""Restorer: one diffusion model generates, denoises, inpaints, restores and edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, image_keys, karras_grid, log_grid, make_schedule
from anodiff.diffusion.noise import family_of
from anodiff.engine.device import resolve_device
from anodiff.errors import AnodiffError, ConfigError, InputError
from anodiff.restoration.arguments import (
    check_denoising,
    check_images,
    column,
    kept_outside,
    positive,
    shape_of,
    solver_name,
)
from anodiff.restoration.chains import (
    BESIDE,
    OnStep,
    Rows,
    network_rows,
    number_keys,
    run_chains,
    trained_levels,
    watched,
)
from anodiff.restoration.counterfactual import Counterfactual, check_class, counterfactual, of_class
from anodiff.restoration.gradients import GradientDenoiser, WindowGradientDenoiser
from anodiff.restoration.noise_level import (
    estimate_levels,
    stabilise_poisson,
    stabilise_rician,
    unstabilise_poisson,
    unstabilise_rician,
)
from anodiff.restoration.operators import Mask, Operator
from anodiff.restoration.solvers import SOLVERS, Posterior, Projected, Resampled
from anodiff.restoration.uncertainty import tweedie_deviation

STEPS = 32
GRIDS: dict[str, Callable[..., Tensor]] = {"karras": karras_grid, "log": log_grid}


@dataclass(frozen=True)
class Restored:
    """What became of N images; tensors lie on the images' device.

    Attributes:
        images: (N, C, *S) float32 in the model's range: the estimate of a denoised image, else the first sample.
        nfe: denoiser calls an image. gradients: of the denoiser, an image; each costs about two calls.
        samples: (N, K, C, *S), where more than one was asked for, or samples of a denoised image.
        uncertainty: (N, C, *S) standard deviation at each voxel, where known.
        sigma: (N,) float64, the noise level that was given or found.
        sigma_from: where each level comes from: "given", "foreground" or "background" (see ``noise_level``).
    """

    images: Tensor
    nfe: int
    gradients: int = 0
    samples: Tensor | None = None
    uncertainty: Tensor | None = None
    sigma: Tensor | None = None
    sigma_from: tuple[str, ...] | None = None


class Restorer:
    """Generates and restores with a model of images; no training for any of it.

    A model of volumes (``volume.mode`` patches) takes them whole, of any size, through overlapping windows whose
    estimates are averaged at every noise level.

    A result is a function of the model, the settings, the seed and the pixels: it has the same bits whatever the other
    images of the batch are (one ``network_batch``, one device), because every computation has that one batch shape.

    Args:
        model: anything with ``denoiser`` (nn.Module, D(x, sigma)) and, optionally, ``config`` and ``schedule``.
        device, precision: see :class:`anodiff.engine.inference.InferenceDenoiser`.
        network_batch: rows that the network sees at once; None takes the recipe's (or 16) on CUDA and one at a time on
            a CPU, see `chains.network_rows`.
        steps: of every chain of noise levels. grid: "karras" or "log".
        sampler: a name of ``anodiff.diffusion.SAMPLERS``; None takes the one that fits the task.
        seed: of the noise.

    Attributes:
        sigma_max, sigma_min: between which levels a chain runs: those the network was trained on.
        notes: sentences for the user.
        on_step: is called with a `chains.ChainStep` after each step of a chain, None for nobody; what it raises ends
            the chain.

    Raises:
        ConfigError: an unknown device, precision, sampler or grid.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        network_batch: int | None = None,
        steps: int = STEPS,
        grid: str = "karras",
        sampler: str | None = None,
        seed: int = 0,
    ) -> None:
        config = getattr(model, "config", None)
        device = resolve_device(device)
        rows = network_rows(network_batch, getattr(getattr(config, "engine", None), "network_batch", 16), device)
        if grid not in GRIDS:
            raise ConfigError(f"grid: expected one of {', '.join(GRIDS)}, found {grid!r}")
        if sampler is not None and sampler not in SAMPLERS:
            raise ConfigError(f"sampler: expected one of {', '.join(SAMPLERS)}, found {sampler!r}")
        if steps < 1:
            raise ConfigError(f"steps: expected at least 1, found {steps}")
        self.denoiser: GradientDenoiser | WindowGradientDenoiser
        self.denoiser = GradientDenoiser(model.denoiser, device, precision, rows)
        volume = getattr(config, "volume", None)
        if volume is not None and volume.mode == "patches":
            self.denoiser = WindowGradientDenoiser(self.denoiser, volume.patch, volume.overlap)
        self.steps, self.grid_name, self.sampler, self.seed = steps, grid, sampler, seed
        self.on_step: OnStep | None = None
        diffusion = getattr(config, "diffusion", None)
        self.family = family_of(getattr(diffusion, "noise", "gaussian"))
        self.scale = getattr(diffusion, "noise_scale", "unit")
        self.sigma_data = getattr(model.denoiser, "sigma_data", 0.5)
        #: names of the classes that the model knows, and where its estimates are clamped
        self.classes: tuple[str, ...] = tuple(getattr(config, "class_names", ()))
        self.clip: float | None = getattr(model.denoiser, "clip", None)
        self._shape = shape_of(config)
        self._schedule = getattr(model, "schedule", None) or getattr(model.denoiser, "schedule", None)
        self.sigma_max, self.sigma_min = trained_levels(diffusion, self._schedule)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        if self.family == "gaussian":
            return ()
        return (f"the model was trained with {self.family} noise: what it restores is no estimate by Bayes' rule",)

    @torch.no_grad()
    def generate(
        self,
        n: int | Sequence[int],
        *,
        seed: int | None = None,
        shape: tuple[int, ...] | None = None,
        label: str | None = None,
        guidance: float = 1.0,
    ) -> Restored:
        """The first ``n`` images of a seed, or those of the given numbers (from 0): each depends on both alone.

        shape: (C, *S); None takes the recipe's. label: the class they are of; None is over all classes. guidance: its
        weight, 1 draws the class as it is, more what is surest of it, for twice the calls.

        Raises ConfigError for no image, an unknown class or weight, or where no shape is known.
        """
        numbers = range(n) if isinstance(n, int) else n
        shape = shape or self._shape
        if not len(numbers) or shape is None:
            raise ConfigError(f"generate: expected at least one image of a known shape, found {n} of shape {shape}")
        check_class(self, label, guidance)
        keys = number_keys(numbers, self.seed if seed is None else seed)
        denoiser = self.denoiser if label is None else of_class(self, label, guidance)
        grid, sample = self.grid(self.sigma_max), SAMPLERS[self.sampler or "dpmpp"]
        if label is None and self.sampler == "ancestral" and getattr(self.denoiser.denoiser, "learned_variance", False):
            preserving = self._schedule is not None and self._schedule.is_variance_preserving
            sample = partial(sample, variance="learned", preserving=preserving)

        def chain(rows: Rows) -> Tensor:
            noise = rows.source()
            return sample(denoiser, self.sigma_max * noise(0), grid, noise, watched(rows.tell))

        images, nfe, _ = self._chains(keys, 1, shape, grid, chain)
        return Restored(images[:, 0].to("cpu"), nfe)

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        sigma: float | Tensor | None = None,
        *,
        noise: str = "gaussian",
        samples: int = 0,
        uncertainty: bool = False,
        foreground: Tensor | None = None,
        background: Tensor | None = None,
        zero: float | Tensor = -1.0,
        gain: float | Tensor | None = None,
        seed: int | None = None,
    ) -> Restored:
        """Noise taken off images (N, C, *S): ``images`` is the estimate of least squared error, one call.

        A posterior sample looks sharper and has twice the error (3 dB): ``samples`` of them come beside, never
        mixed in, each a chain from the image's own level down.

        Args:
            sigma: noise level in the units of x, a number or (N,); None estimates it (see ``noise_level``), on a fixed
                grid of 8 levels a doubling. Not of "poisson", where ``gain`` is the level.
            noise: "gaussian"; "rician" for magnitude MRI; "poisson" for counts. The last two are first made Gaussian.
            samples: how many samples of the posterior ("gaussian" only); from 2 on ``uncertainty`` is their deviation.
            uncertainty: the deviation by Tweedie's formula instead, sigma sqrt(diag dD/dx), for one more call and 16
                gradients a channel (64 in 3-D); "gaussian" only.
            foreground: (N, *S) bool, where the noise is measured.
            background: (N, *S) bool, where "rician" measures it; None is all outside the foreground.
            zero: the value of x for no signal, of "rician" and "poisson"; a number or (N,).
            gain: counts per unit of x, of "poisson"; a number or (N,).
            seed: of the samples, and of the signs that probe the uncertainty.

        Raises:
            ConfigError: an unknown noise, a level or gain that is not positive, an argument that this noise has no use
                for, or samples from a level above ``sigma_max``.
            InputError: pixels that are not finite, or samples from an estimated level above ``sigma_max``.
        """
        check_images(x)
        check_denoising(noise, sigma is not None, samples, uncertainty, gain is not None)
        base = column(zero, x)
        level, told = torch.ones(len(x), dtype=torch.float64), ("given",) * len(x)
        if sigma is not None:
            level = positive(sigma, x, "sigma")
        elif noise != "poisson":
            level, told = estimate_levels(x, noise, foreground, background, base)
        if samples:
            given = sigma is not None
            self.check_level(float(level.max()), "" if given else "an estimate", ConfigError if given else InputError)
        view = (-1,) + (1,) * (x.ndim - 1)
        width = level.to(x.device, torch.float32).reshape(view)
        floor = base.to(x.device, torch.float32).reshape(view)
        if noise == "rician":
            estimate, nfe = self._estimate(floor + width * stabilise_rician((x - floor) / width), level)
            images = floor + width * unstabilise_rician((estimate - floor) / width)
            return Restored(images, nfe, sigma=level, sigma_from=told)
        if noise == "poisson":
            return self._counts(x, floor, positive(gain, x, "gain").to(x.device, torch.float32).reshape(view))
        images, nfe = self._estimate(x, level)
        drawn, deviation, gradients = None, None, 0
        keys = image_keys(x, self.seed if seed is None else seed)
        if samples:
            drawn, calls = self._samples(x, level, keys, samples)
            nfe += samples * calls
            deviation = drawn.std(dim=1) if samples > 1 else None
        if uncertainty and deviation is None:
            deviation, gradients = tweedie_deviation(self.denoiser, x, level, keys)
            nfe += 1
        return Restored(images, nfe, gradients, drawn, deviation, level, told)

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        solver: str | None = None,
        samples: int = 1,
        sigma_y: float = 0.0,
        seed: int | None = None,
        **options: Any,
    ) -> Restored:
        """Fills images (N, C, *S) where the mask (*S), (N, *S) or (N, C, *S) is True; what they hold there is
        not looked at.

        Every other voxel is kept bit for bit, unless ``sigma_y`` says that it is noisy. Other arguments, and errors:
        see :meth:`restore`.
        """
        missing = mask.to(x.device, torch.bool)
        if missing.shape != x.shape:
            if missing.shape not in (x.shape[2:], (len(x), *x.shape[2:])):
                raise ConfigError(f"mask: expected the shape {tuple(x.shape[2:])}, found {tuple(missing.shape)}")
            missing = missing.expand(len(x), *x.shape[2:]).unsqueeze(1)
        y = torch.where(missing, 0, x)
        found = self.restore(
            None, Mask(missing), y, solver=solver, samples=samples, sigma_y=sigma_y, seed=seed, **options
        )
        if sigma_y:
            return found
        drawn = None if found.samples is None else torch.where(missing[:, None], found.samples, x[:, None])
        images = torch.where(missing, found.images, x)
        return Restored(images, found.nfe, found.gradients, drawn, found.uncertainty)

    @torch.no_grad()
    def restore(
        self,
        x: Tensor | None,
        operator: Operator,
        y: Tensor | None = None,
        *,
        solver: str | None = None,
        samples: int = 1,
        sigma_y: float = 0.0,
        seed: int | None = None,
        **options: Any,
    ) -> Restored:
        """Samples of the images that ``operator`` would measure as y; of an image x, y is its measurement.

        Args:
            x: (N, C, *S) in [-1, 1], where no y is given.
            y: measurements, as the operator makes them.
            solver: a name of ``SOLVERS``; None is "matched", or "projected" for an operator that is not linear.
            samples: how many an image; from 2 on ``uncertainty`` is their deviation.
            sigma_y: standard deviation of the measurement's noise.
            options: of the solver: iterations, weight, repeats.

        Raises:
            ConfigError: an unknown solver, one that does not take the operator, or a sampler it is not made for.
            InputError: values that are not finite.
        """
        if y is None:
            if x is None:
                raise ConfigError("restore: expected an image or its measurement, found neither")
            y = operator(x)
        check_images(y)
        name = solver_name(solver, operator)
        if samples < 1:
            raise ConfigError(f"samples: expected at least 1, found {samples}")
        shape = tuple(operator.rows(torch.tensor([0])).pinv(y[:1]).shape[1:])
        keys = image_keys(y, self.seed if seed is None else seed)
        grid = self.grid(self.sigma_max)

        def chain(rows: Rows) -> Tensor:
            noise = rows.source()
            part = y[rows.image.to(y.device)].to(self.denoiser.device, torch.float32)
            posterior = self._posterior(name, operator.rows(rows.image), part, sigma_y, grid, rows, options)
            sampler = SAMPLERS[self._sampler(posterior)]
            after = watched(rows.tell, posterior.callback)
            return sampler(posterior, self.sigma_max * noise(0), grid, noise, after)

        drawn, nfe, gradients = self._chains(keys, samples, shape, grid, chain)
        drawn = drawn.to(y.device)
        deviation = drawn.std(dim=1) if samples > 1 else None
        return Restored(drawn[:, 0], samples * nfe, samples * gradients, drawn if samples > 1 else None, deviation)

    @torch.no_grad()
    def check(
        self, operator: Operator, shape: tuple[int, ...], *, solver: str | None = None, sigma_y: float = 0.0
    ) -> None:
        """Raises every ConfigError of :meth:`restore` for images of ``shape`` = (C, *S); the network does not run."""
        name = solver_name(solver, operator)
        first = torch.zeros(1, dtype=torch.int64)
        rows = Rows(first, first, first, shape, self.family, self.scale)
        y = operator(torch.zeros(1, *shape))
        posterior = self._posterior(name, operator, y, sigma_y, self.grid(self.sigma_max), rows, {})
        self._sampler(posterior)
        if name != Projected.name:
            _ = posterior.linear

    def check_level(self, sigma: float, origin: str = "", error: type[AnodiffError] = ConfigError) -> None:
        """Refuses to start a chain at a noise level above ``sigma_max``, which the network has never seen.

        Raises ``error``, which says with ``origin`` where the level is from.
        """
        if sigma > self.sigma_max:
            raise error(
                f"sigma: expected a noise level that the model was trained on, up to {self.sigma_max:.4g}, "
                f"found {sigma:.4g}" + (f" ({origin})" if origin else "")
            )

    @torch.no_grad()
    def edit(
        self,
        x: Tensor,
        sigma: float | None = None,
        mask: Tensor | None = None,
        *,
        strength: float | None = None,
        seed: int | None = None,
    ) -> Restored:
        """SDEdit (Meng et al. 2022): noise of level ``sigma`` put on and taken off; images (N, C, *S) in and out.

        0.5 to 1 keeps the layout, above 2 little is kept. ``strength`` says it as a share of the schedule's steps
        instead. ``mask`` (*S) or (N, *S): True may change, every other voxel is kept bit for bit.

        Raises:
            ConfigError: neither or both of sigma and strength, or one out of range or above what the model was trained
                on; a mask of another size.
            InputError: pixels that are not finite.
        """
        check_images(x)
        level = self.edit_level(sigma, strength)
        kept = kept_outside(mask, x)
        grid, sample = self.grid(level), SAMPLERS[self.sampler or "dpmpp"]
        operator = None if kept is None else Mask(~kept)

        def chain(rows: Rows) -> Tensor:
            noise = rows.source()
            guide = x[rows.image.to(x.device)].to(self.denoiser.device, torch.float32)
            noisy = guide + level * noise(0)
            if operator is None:
                return sample(self.denoiser, noisy, grid, noise, watched(rows.tell))
            part = operator.rows(rows.image)
            return sample(Projected(self.denoiser, part, part(guide)), noisy, grid, noise, watched(rows.tell))

        keys = image_keys(x, self.seed if seed is None else seed)
        drawn, nfe, _ = self._chains(keys, 1, tuple(x.shape[1:]), grid, chain)
        images = drawn[:, 0].to(x.device)
        return Restored(images if kept is None else torch.where(kept, x, images), nfe)

    def counterfactual(self, x: Tensor, target: str, sigma: float | None = None, **options: Any) -> Counterfactual:
        """Images (N, C, *S) as they would look in the class ``target``; see `counterfactual.counterfactual`."""
        return counterfactual(self, x, target, sigma, **options)

    def _chains(
        self, keys: Tensor, samples: int, shape: tuple[int, ...], grid: Tensor, chain: Callable[[Rows], Tensor]
    ) -> tuple[Tensor, int, int]:
        settings = (self.family, self.scale, len(grid) - 1, self.on_step)
        return run_chains(self.denoiser, chain, keys, samples, shape, *settings)

    def edit_level(self, sigma: float | None, strength: float | None) -> float:
        """The noise level that :meth:`edit` starts at; its errors."""
        if (sigma is None) == (strength is None):
            raise ConfigError(
                "edit: expected one of sigma and strength, found " + ("none" if sigma is None else "both")
            )
        if strength is not None:
            if not 0 < strength <= 1:
                raise ConfigError(f"strength: expected a share of the steps above 0 and up to 1, found {strength}")
            schedule = self._schedule or make_schedule("vp-linear")
            sigma = float(schedule.sigma_of(strength * schedule.num_steps))
        assert sigma is not None
        if not 0 < sigma < math.inf:
            raise ConfigError(f"sigma: expected a positive noise level, found {sigma}")
        self.check_level(float(sigma), "" if strength is None else f"of strength {strength:g}")
        return float(sigma)

    def _sampler(self, posterior: Posterior) -> str:
        sampler = self.sampler or posterior.samplers[0]
        if sampler not in posterior.samplers:
            raise ConfigError(
                f"solver {posterior.name!r}: expected a sampler of {', '.join(posterior.samplers)}, found {sampler!r}"
            )
        return sampler

    def _posterior(
        self,
        name: str,
        operator: Operator,
        y: Tensor,
        sigma_y: float,
        grid: Tensor,
        rows: Rows,
        options: dict[str, Any],
    ) -> Posterior:
        settings: dict[str, Any] = dict(options)
        if name == Resampled.name:
            settings["noise"] = rows.source(BESIDE)
        elif name == Projected.name:
            settings |= {"sigmas": grid, "noise": rows.source()}
        elif name in ("matched", "guided"):
            settings.setdefault("sigma_data", self.sigma_data)
        try:
            return SOLVERS[name](self.denoiser, operator, y, sigma_y, **settings)
        except TypeError as error:
            raise ConfigError(f"solver {name!r}: {str(error).split('() ')[-1]}") from None

    def grid(self, top: float, final_zero: bool = True) -> Tensor:
        """The levels of a chain from ``top`` down: ``steps`` steps, to 0 or to the lowest level that was learnt."""
        low, count = min(self.sigma_min, top / 4), self.steps if final_zero else self.steps + 1
        return GRIDS[self.grid_name](top, low, count, final_zero=final_zero)

    def _estimate(self, x: Tensor, level: Tensor) -> tuple[Tensor, int]:
        before = self.denoiser.calls
        images = self.denoiser(x, level).to(x.device)
        return images.clone(), (self.denoiser.calls - before) // len(x)

    def _counts(self, x: Tensor, zero: Tensor, gain: Tensor) -> Restored:
        """Photon counts: Anscombe's transform, spread over the model's range from ``zero`` to 1."""
        low, high = stabilise_poisson(torch.zeros_like(zero)), stabilise_poisson(gain * (1 - zero))
        unit = (1 - zero) / (high - low)
        level = unit.double().cpu().reshape(-1)
        estimate, nfe = self._estimate(zero + unit * (stabilise_poisson(gain * (x - zero)) - low), level)
        images = zero + unstabilise_poisson((estimate - zero) / unit + low) / gain
        return Restored(images, nfe, sigma=level, sigma_from=("given",) * len(x))

    def _samples(self, x: Tensor, level: Tensor, keys: Tensor, samples: int) -> tuple[Tensor, int]:
        """(N, K, C, *S): ancestral chains from the images themselves, each from its own level.

        A deterministic sampler would take an image to one place only: the chain needs fresh noise to be a sample.
        """
        drawn = x.new_empty(len(x), samples, *x.shape[1:], dtype=torch.float32)
        calls = 0
        for value in level.unique().tolist():
            chosen = (level == value).nonzero().flatten()
            part, grid = x[chosen.to(x.device)], self.grid(value)

            def chain(rows: Rows, part: Tensor = part, grid: Tensor = grid) -> Tensor:
                noisy = part[rows.image.to(part.device)].to(self.denoiser.device, torch.float32)
                return SAMPLERS["ancestral"](self.denoiser, noisy, grid, rows.source(), watched(rows.tell))

            found, calls, _ = self._chains(keys[chosen], samples, tuple(x.shape[1:]), grid, chain)
            drawn[chosen.to(x.device)] = found.to(x.device)
        return drawn, calls

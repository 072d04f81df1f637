"""Restorer: one diffusion model generates, denoises, inpaints, restores and edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, image_keys, karras_grid, log_grid, make_schedule
from anodiff.diffusion.noise import MIXED, family_of
from anodiff.engine.device import resolve_device
from anodiff.errors import AnodiffError, ConfigError
from anodiff.restoration import denoising, measured
from anodiff.restoration.arguments import check_images, kept_outside, shape_of
from anodiff.restoration.chains import (
    OnState,
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
from anodiff.restoration.operators import Mask, Operator
from anodiff.restoration.restored import Restored
from anodiff.restoration.solvers import Projected
from anodiff.restoration.start import mean_image

STEPS = 32
GRIDS: dict[str, Callable[..., Tensor]] = {"karras": karras_grid, "log": log_grid}


class Restorer:
    """Generates and restores with a model of images; no training for any of it.

    A model of volumes (``volume.mode`` patches), or of images with ``engine.window``, takes them whole, of any size,
    through overlapping windows whose estimates are averaged at every noise level.

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
        mixed: whether half of the training was with noise that no chain here puts on or takes off.
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
        engine: Any = getattr(config, "engine", None)
        if volume is not None and volume.mode == "patches":
            self.denoiser = WindowGradientDenoiser(self.denoiser, volume.patch, volume.overlap)
        elif getattr(engine, "window", None) is not None:
            self.denoiser = WindowGradientDenoiser(self.denoiser, engine.window, engine.overlap)
        self.steps, self.grid_name, self.sampler, self.seed = steps, grid, sampler, seed
        self.on_step: OnStep | None = None
        diffusion = getattr(config, "diffusion", None)
        self.mixed = getattr(diffusion, "noise", "gaussian") == MIXED
        self.family = family_of(getattr(diffusion, "noise", "gaussian"))
        self.scale = getattr(diffusion, "noise_scale", "unit")
        self.sigma_data = getattr(model.denoiser, "sigma_data", 0.5)
        #: names of the classes that the model knows, and where its estimates are clamped
        self.classes: tuple[str, ...] = tuple(getattr(config, "class_names", ()))
        self.clip: float | None = getattr(model.denoiser, "clip", None)
        #: (C, *S) of what it was trained on, where known
        self.shape = shape_of(config)
        self._schedule = getattr(model, "schedule", None) or getattr(model.denoiser, "schedule", None)
        self.sigma_max, self.sigma_min = trained_levels(diffusion, self._schedule)
        self._mean: tuple[Any, Tensor] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        if self.mixed:
            return (
                "the model was trained with mixed noise, half of it white: it restores visibly worse, with specks of "
                "colour, than one trained with white noise alone (diffusion.noise: gaussian)",
            )
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
        on_state: OnState | None = None,
    ) -> Restored:
        """The first ``n`` images of a seed, or those of the given numbers (from 0): each depends on both alone.

        shape: (C, *S); None takes the recipe's. label: the class they are of; None is over all classes. guidance: its
        weight, 1 draws the class as it is, more what is surest of it, for twice the calls. on_state: is shown the rows
        of a chain after each step, to look at. Chains start about the model's mean image, see :meth:`mean`.

        Raises ConfigError for no image, an unknown class or weight, or where no shape is known.
        """
        numbers = range(n) if isinstance(n, int) else n
        shape = shape or self.shape
        if not len(numbers) or shape is None:
            raise ConfigError(f"generate: expected at least one image of a known shape, found {n} of shape {shape}")
        check_class(self, label, guidance)
        keys = number_keys(numbers, self.seed if seed is None else seed)
        denoiser = self.denoiser if label is None else of_class(self, label, guidance)
        grid, sample = self.grid(self.sigma_max), SAMPLERS[self.sampler or "dpmpp"]
        if label is None and self.sampler == "ancestral" and getattr(self.denoiser.denoiser, "learned_variance", False):
            preserving = self._schedule is not None and self._schedule.is_variance_preserving
            sample = partial(sample, variance="learned", preserving=preserving)

        mean = self.mean(shape, label, guidance)

        def chain(rows: Rows) -> Tensor:
            noise = rows.source()
            look = None if on_state is None else partial(on_state, rows.image)
            return sample(denoiser, mean + self.sigma_max * noise(0), grid, noise, watched(rows.tell, look))

        images, nfe, _ = self.chains(keys, 1, shape, grid, chain)
        return Restored(images[:, 0].to("cpu"), nfe)

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
        return denoising.denoise(
            self,
            x,
            sigma,
            noise=noise,
            samples=samples,
            uncertainty=uncertainty,
            foreground=foreground,
            background=background,
            zero=zero,
            gain=gain,
            seed=seed,
        )

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        solver: str | None = None,
        samples: int = 1,
        antithetic: bool = False,
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
            None, Mask(missing), y,
            solver=solver, samples=samples, antithetic=antithetic, sigma_y=sigma_y, seed=seed, **options,
        )  # fmt: skip
        if sigma_y:
            return found
        drawn = None if found.samples is None else torch.where(missing[:, None], found.samples, x[:, None])
        images = torch.where(missing, found.images, x)
        return Restored(images, found.nfe, found.gradients, drawn, found.uncertainty)

    def restore(
        self,
        x: Tensor | None,
        operator: Operator,
        y: Tensor | None = None,
        *,
        solver: str | None = None,
        samples: int = 1,
        antithetic: bool = False,
        sigma_y: float = 0.0,
        seed: int | None = None,
        **options: Any,
    ) -> Restored:
        """Samples of the images that ``operator`` would measure as y; of an image x, y is its measurement.

        Chains start about the model's mean image, see :meth:`mean`: what y does not say would else be pulled to 0.

        Args:
            x: (N, C, *S) in [-1, 1], where no y is given.
            y: measurements, as the operator makes them.
            solver: a name of ``SOLVERS``; None is "matched", or "projected" for an operator that is not linear.
            samples: how many an image; from 2 on ``uncertainty`` is their deviation.
            antithetic: draw them in pairs of opposite noise (Hammersley & Morton 1956). Each is a sample as before,
                and the mean of two pairs is nearer to the posterior's mean than that of many others; their deviation
                is not the posterior's, so that there is no ``uncertainty``.
            sigma_y: standard deviation of the measurement's noise.
            options: of the solver: iterations, weight, repeats.

        Raises:
            ConfigError: an unknown solver, one that does not take the operator, a sampler it is not made for, or an
                odd number of antithetic samples.
            InputError: values that are not finite.
        """
        return measured.restore(self, x, operator, y, solver, samples, antithetic, sigma_y, seed, options)

    def check(
        self, operator: Operator, shape: tuple[int, ...], *, solver: str | None = None, sigma_y: float = 0.0
    ) -> None:
        """Raises every ConfigError of :meth:`restore` for images of ``shape`` = (C, *S); the network does not run."""
        measured.check(self, operator, shape, solver, sigma_y)

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
        instead. ``mask`` (*S), (N, *S) or (N, C, *S): True may change, every other voxel is kept bit for bit.

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
        drawn, nfe, _ = self.chains(keys, 1, tuple(x.shape[1:]), grid, chain)
        images = drawn[:, 0].to(x.device)
        return Restored(images if kept is None else torch.where(kept, x, images), nfe)

    def counterfactual(self, x: Tensor, target: str, sigma: float | None = None, **options: Any) -> Counterfactual:
        """Images (N, C, *S) as they would look in the class ``target``; see `counterfactual.counterfactual`."""
        return counterfactual(self, x, target, sigma, **options)

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

    def mean(self, shape: tuple[int, ...], label: str | None = None, guidance: float = 1.0) -> Tensor:
        """(1, C, *S): about which image chains from noise of level ``sigma_max`` start, see :func:`start.mean_image`.

        It is kept until another is asked for; its calls are those of no image.
        """
        key, kept = (shape, label, guidance, self.sigma_max), self._mean
        if kept is None or kept[0] != key:
            denoiser = self.denoiser if label is None else of_class(self, label, guidance)
            settings = (self.sigma_max, self.family, self.scale, self.denoiser.device, self.denoiser.chain_rows)
            self._mean = kept = key, mean_image(denoiser, shape, *settings)
        return kept[1]

    def grid(self, top: float, final_zero: bool = True) -> Tensor:
        """The levels of a chain from ``top`` down: ``steps`` steps, to 0 or to the lowest level that was learnt."""
        low, count = min(self.sigma_min, top / 4), self.steps if final_zero else self.steps + 1
        return GRIDS[self.grid_name](top, low, count, final_zero=final_zero)

    def chains(
        self,
        keys: Tensor,
        samples: int,
        shape: tuple[int, ...],
        grid: Tensor,
        chain: Callable[[Rows], Tensor],
        antithetic: bool = False,
    ) -> tuple[Tensor, int, int]:
        """Chains of this model down the levels of ``grid``, see `chains.run_chains`; ``on_step`` hears of each step."""
        settings = (self.family, self.scale, len(grid) - 1, self.on_step, antithetic)
        return run_chains(self.denoiser, chain, keys, samples, shape, *settings)

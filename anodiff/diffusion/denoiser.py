"""Denoiser: D(x_0 + sigma * n, sigma) -> estimate of x_0, whatever the network inside was trained to predict."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anodiff.diffusion.schedule import NoiseSchedule
from anodiff.errors import ConfigError

PREDICTIONS = ("eps", "x0", "v", "edm")
NOISE_INPUTS = ("log_sigma", "timestep")
#: a model that is told what the image looks like without noise can only be asked about images that are at hand
NEEDS_IMAGE = (
    "expected a model that needs nothing but a noisy image, found one that is told what it looks like without noise "
    "(diffusion.given image): it detects anomalies, and restores, generates or measures nothing else"
)
SMALLEST_SIGMA = 1e-5  # what a network is told where the noise level is 0, whose logarithm does not exist


class Coefficients(NamedTuple):
    """``D(x, sigma) = c_skip * x + c_out * F(c_in * x, c_noise)``, each (N,) or () float64."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def preconditioning(prediction: str, sigma: Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in) at noise levels ``sigma`` (any shape, float64).

    eps, x0 and v see the image at the scale of a variance-preserving process, ``x / sqrt(1 + sigma^2)`` (Ho et al.
    2020; Salimans & Ho 2022); edm is Karras et al. 2022, table 1, with ``sigma_data`` the data's standard deviation.
    Raises ConfigError for an unknown prediction.
    """
    scale = (1 + sigma**2).rsqrt()
    if prediction == "eps":
        return torch.ones_like(sigma), -sigma, scale
    if prediction == "x0":
        return torch.zeros_like(sigma), torch.ones_like(sigma), scale
    if prediction == "v":
        return scale**2, -sigma * scale, scale
    if prediction == "edm":
        total = (sigma**2 + sigma_data**2).rsqrt()
        return (sigma_data * total) ** 2, sigma * sigma_data * total, total
    raise ConfigError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")


class Denoiser(nn.Module):
    """Wraps a network F as a denoiser of additive noise; every sampler, detector and restorer calls this.

    network:     module ``F(c_in * x, c_noise)`` with x (N, C, *spatial) and c_noise (N,), returning (N, C, *spatial).
                 A network that is given a context sees it, as it is, in channels after those of c_in * x.
    prediction:  what F was trained to predict: "eps" (the noise), "x0" (the image), "v", or "edm" (Karras et al. 2022).
    sigma_data:  standard deviation of the data, used by "edm" only.
    schedule:    needed for ``noise_input="timestep"``: the table the network was trained with.
    noise_input: how F is told the noise level. "log_sigma": ln(sigma) / 4. "timestep": the position in the schedule,
                 counted from 0 and interpolated in ln(sigma); levels outside the table are told as its ends.
    clip:        the estimate is clamped to [-clip, clip] in evaluation mode (in training the loss needs the gradient
                 outside too); None leaves it alone.
    learned_variance: F has twice the channels; the second half says where the variance of a reverse step lies.

    A network that knows ``classes`` (their number) is called as ``F(c_in * x, c_noise, label)`` where there is a label.
    ``label`` is the class of the calls that name none: None is "no label", the estimate over all classes.

    Raises ConfigError for an unknown prediction or noise input, or a missing schedule.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: str = "edm",
        *,
        sigma_data: float = 0.5,
        schedule: NoiseSchedule | None = None,
        noise_input: str = "log_sigma",
        clip: float | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ConfigError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")
        if noise_input not in NOISE_INPUTS:
            raise ConfigError(f"noise_input must be one of {', '.join(NOISE_INPUTS)}, found {noise_input!r}")
        if noise_input == "timestep" and schedule is None:
            raise ConfigError("noise_input 'timestep' needs the schedule that the network was trained with")
        if not sigma_data > 0:
            raise ConfigError(f"sigma_data must be positive, found {sigma_data}")
        if clip is not None and not clip > 0:
            raise ConfigError(f"clip must be positive or None, found {clip}")
        self.network = network
        self.prediction = prediction
        self.sigma_data = float(sigma_data)
        self.schedule = schedule
        self.noise_input = noise_input
        self.clip = clip
        self.learned_variance = learned_variance
        self.label: int | None = None

    @property
    def sees_image(self) -> bool:
        """Whether the network is told what the noise-free image looks like, which is then the context of each call."""
        return bool(getattr(self.network, "sees_image", False))

    def coefficients(self, sigma: Tensor | float) -> Coefficients:
        """The four preconditioning factors at noise levels ``sigma`` (scalar or (N,)), float64 on sigma's device."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        c_skip, c_out, c_in = preconditioning(self.prediction, sigma, self.sigma_data)
        return Coefficients(c_skip, c_out, c_in, self._noise_condition(sigma))

    def forward(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None, label: Tensor | int | None = None
    ) -> Tensor:
        """Estimate of the clean image in x's dtype.

        x:     (N, C, *spatial), ``x_0 + sigma * n`` in the units of the [-1, 1] data.
        sigma: noise level, a number or (N,), on any device. The tables are computed in float64; under autocast only the
               network runs in the lower precision.
        context: (N, K, *spatial), what is known beside the noisy image (past frames, another modality), or None.
        label: the class, a number or (N,) int64; negative is "no label". Raises ConfigError without classes.
        """
        return self._estimate(x, sigma, context, label)[0]

    def with_variance(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None, label: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The estimate, and where the reverse variance lies: 0 the small, 1 the large one, linear in the logarithm.

        Both (N, C, *spatial); the second is not bounded (Nichol & Dhariwal 2021, equation 15).
        Raises ConfigError where the variance is not learned.
        """
        if not self.learned_variance:
            raise ConfigError(
                "expected a model with a learned variance (diffusion.variance: learned), found a fixed one"
            )
        denoised, rest = self._estimate(x, sigma, context, label)
        return denoised, (rest.to(x.dtype) + 1) / 2

    def _estimate(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None, label: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """The estimate, and what else the network puts out."""
        if context is None and self.sees_image:
            raise ConfigError(NEEDS_IMAGE)
        c_skip, c_out, c_in, c_noise = self._coefficients_like(x, sigma)
        output, rest = self.network(_beside(c_in * x, context), c_noise, *self._told(x, label)), x.new_empty(0)
        if self.learned_variance:
            output, rest = output.chunk(2, dim=1)
        denoised = c_skip * x + c_out * output.to(x.dtype)
        if self.clip is not None and not self.training:
            denoised = denoised.clamp(-self.clip, self.clip)
        return denoised, rest

    def given(
        self, context: Tensor | None, label: Tensor | int | None = None
    ) -> Callable[[Tensor, Tensor | float], Tensor]:
        """The denoiser (x, sigma) -> x_0 with its context and class fixed, as samplers and losses call it."""
        return self if context is None and label is None else partial(self, context=context, label=label)

    def of_class(self, label: int | None) -> Denoiser:
        """The same denoiser, sharing its network, whose calls that name no class mean this one."""
        other = copy.copy(self)
        other.label = label
        return other

    def features(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None, label: Tensor | int | None = None
    ) -> list[Tensor]:
        """Encoder activations of the network at ``(x, sigma)``, finest first, each (N, channels, *smaller spatial).

        Raises ConfigError where the network offers no ``features(x, c_noise)``.
        """
        features: Callable[..., list[Tensor]] | None = getattr(self.network, "features", None)
        if features is None:
            raise ConfigError(f"a {type(self.network).__name__} network gives no encoder features")
        if context is None and self.sees_image:
            context = x  # what is looked at for its features is as good as free of noise
        _, _, c_in, c_noise = self._coefficients_like(x, sigma)
        return features(_beside(c_in * x, context), c_noise, *self._told(x, label))

    def _told(self, x: Tensor, label: Tensor | int | None) -> tuple[Tensor, ...]:
        """The label of each row as the network is told it; nothing where there is none."""
        label = self.label if label is None else label
        if label is None:
            return ()
        if not getattr(self.network, "classes", 0):
            raise ConfigError("expected no class for a network that was trained without classes, found one")
        if isinstance(label, Tensor):
            return (label.to(x.device).expand(x.shape[0]),)
        return (torch.full((x.shape[0],), label, dtype=torch.long, device=x.device),)

    def _noise_condition(self, sigma: Tensor) -> Tensor:
        if self.noise_input == "log_sigma":
            return sigma.clamp(min=SMALLEST_SIGMA).log() / 4
        assert self.schedule is not None
        return (self.schedule.t_of(sigma) - 1).clamp(min=0)

    def _coefficients_like(self, x: Tensor, sigma: Tensor | float) -> Coefficients:
        """Coefficients in x's dtype and device: three broadcastable against x, and c_noise (N,)."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
        if sigma.numel() not in (1, x.shape[0]):
            raise ConfigError(f"sigma must be one number or one per image ({x.shape[0]}), found {sigma.numel()}")
        # One small transfer instead of four when sigma lives on the CPU and x on an accelerator.
        stacked = torch.stack(self.coefficients(sigma)).to(device=x.device, dtype=x.dtype)
        c_skip, c_out, c_in, c_noise = stacked.expand(4, x.shape[0]).unbind()
        shape = (-1,) + (1,) * (x.ndim - 1)
        return Coefficients(c_skip.view(shape), c_out.view(shape), c_in.view(shape), c_noise)

    def extra_repr(self) -> str:
        """One line of settings for ``print(denoiser)``."""
        clip = math.inf if self.clip is None else self.clip
        return f"prediction={self.prediction!r}, noise_input={self.noise_input!r}, clip={clip:g}"


def _beside(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context.to(x.dtype)], dim=1)

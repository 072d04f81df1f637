"""What the tasks of the Restorer accept: one clear sentence for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anodiff.errors import ConfigError, InputError
from anodiff.restoration.operators import Operator
from anodiff.restoration.solvers import SOLVERS

NOISES = ("gaussian", "rician", "poisson")


def shape_of(config: Any) -> tuple[int, ...] | None:
    """(C, *S) of what the recipe's network makes: of its images, of slices with their neighbours, of a volume or, where
    the recipe has no size of volumes, of a patch. None without a recipe."""
    preprocess, volume = getattr(config, "preprocess", None), getattr(config, "volume", None)
    if preprocess is None:
        return None
    if volume is None:
        return (preprocess.channels, *preprocess.size)
    if volume.mode == "patches":
        return (preprocess.channels, *(volume.size or volume.patch))
    return (preprocess.channels * volume.stack, *preprocess.size)


def column(value: float | Tensor | None, x: Tensor) -> Tensor:
    """One number, or one an image of x, as (N,) float64 on the CPU. Raises ConfigError for another count."""
    values = torch.as_tensor(0.0 if value is None else value, dtype=torch.float64).cpu().reshape(-1)
    if values.numel() not in (1, len(x)):
        raise ConfigError(f"expected one number, or one an image ({len(x)}), found {values.numel()}")
    return values.expand(len(x))


def positive(value: float | Tensor | None, x: Tensor, name: str) -> Tensor:
    """As `column`; ConfigError also for a number that is not positive and finite."""
    values = column(value, x)
    if not bool((values > 0).all() & values.isfinite().all()):
        raise ConfigError(f"{name}: expected positive numbers, found {values.min():g}")
    return values


def solver_name(name: str | None, operator: Operator) -> str:
    """The solver to take for an operator. Raises ConfigError for one that is unknown."""
    name = name or ("matched" if operator.linear else "projected")
    if name not in SOLVERS:
        raise ConfigError(f"solver: expected one of {', '.join(SOLVERS)}, found {name!r}")
    return name


def check_denoising(noise: str, level: bool, samples: int, uncertainty: bool, gain: bool) -> None:
    """Refuses what ``denoise`` would not use for this noise; level, gain: whether they are given."""
    if noise not in NOISES:
        raise ConfigError(f"noise: expected one of {', '.join(NOISES)}, found {noise!r}")
    if samples < 0:
        raise ConfigError(f"samples: expected 0 or more, found {samples}")
    for name, given in (("samples", samples), ("uncertainty", uncertainty)):
        if given and noise != "gaussian":
            raise ConfigError(f"{name}: expected Gaussian noise, found {noise!r}, of which only the estimate is known")
    if gain != (noise == "poisson"):
        found = "none" if noise == "poisson" else f"one for {noise!r} noise"
        raise ConfigError(f"gain: expected counts per unit of the image for noise 'poisson' alone, found {found}")
    if level and noise == "poisson":
        raise ConfigError("sigma: expected none for noise 'poisson', whose level is that of its gain, found one")


def kept_outside(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """(N, 1, *S) bool where x must stay as it is: outside the mask (*S) or (N, *S); (N, C, *S) of a mask like x.

    Raises ConfigError for a mask of another size.
    """
    if mask is None:
        return None
    kept = ~mask.to(x.device, torch.bool)
    if kept.shape == x.shape:
        return kept
    if kept.shape not in (x.shape[2:], (len(x), *x.shape[2:])):
        raise ConfigError(f"mask: expected the shape {tuple(x.shape[2:])}, found {tuple(kept.shape)}")
    return kept.expand(len(x), *x.shape[2:]).unsqueeze(1)


def check_images(images: Tensor) -> None:
    """Raises InputError unless images are (N, C, *S) of rank 2 or 3, at least one, and finite."""
    if images.ndim not in (4, 5) or not len(images):
        raise InputError(f"images: expected (N, C, *S) of rank 2 or 3 with N >= 1, found {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise InputError("images: expected finite pixels, found NaN or infinite ones")

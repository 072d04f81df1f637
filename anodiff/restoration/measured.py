"""Images from what an operator measured of them: one solver's posterior in the place of the denoiser of a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, image_keys
from anodiff.errors import ConfigError
from anodiff.restoration.arguments import check_images, solver_name
from anodiff.restoration.chains import BESIDE, Rows, watched
from anodiff.restoration.operators import Operator
from anodiff.restoration.restored import Restored
from anodiff.restoration.solvers import SOLVERS, Posterior, Projected, Resampled

if TYPE_CHECKING:
    from anodiff.restoration.restorer import Restorer


@torch.no_grad()
def restore(
    restorer: Restorer,
    x: Tensor | None,
    operator: Operator,
    y: Tensor | None,
    solver: str | None,
    samples: int,
    antithetic: bool,
    sigma_y: float,
    seed: int | None,
    options: dict[str, Any],
) -> Restored:
    """Samples of the images that were measured as y; arguments and errors: see :meth:`Restorer.restore`."""
    if y is None:
        if x is None:
            raise ConfigError("restore: expected an image or its measurement, found neither")
        y = operator(x)
    check_images(y)
    name = solver_name(solver, operator)
    if samples < 1:
        raise ConfigError(f"samples: expected at least 1, found {samples}")
    if antithetic and samples % 2:
        raise ConfigError(f"samples: expected an even number of antithetic ones, found {samples}")
    shape = tuple(operator.rows(torch.tensor([0])).pinv(y[:1]).shape[1:])
    keys = image_keys(y, restorer.seed if seed is None else seed)
    grid = restorer.grid(restorer.sigma_max)
    first = torch.zeros(1, dtype=torch.int64)
    alone = Rows(first, keys[:1], first, shape, restorer.family, restorer.scale)
    _refuse(restorer, posterior_of(restorer, name, operator.rows(first), y[:1], sigma_y, grid, alone, options))
    mean = restorer.mean(shape)

    def chain(rows: Rows) -> Tensor:
        noise = rows.source()
        part = y[rows.image.to(y.device)].to(restorer.denoiser.device, torch.float32)
        posterior = posterior_of(restorer, name, operator.rows(rows.image), part, sigma_y, grid, rows, options)
        sampler = SAMPLERS[sampler_of(restorer, posterior)]
        after = watched(rows.tell, posterior.callback)
        return sampler(posterior, mean + restorer.sigma_max * noise(0), grid, noise, after)

    drawn, nfe, gradients = restorer.chains(keys, samples, shape, grid, chain, antithetic)
    drawn = drawn.to(y.device)
    deviation = drawn.std(dim=1) if samples > 1 and not antithetic else None
    return Restored(drawn[:, 0], samples * nfe, samples * gradients, drawn if samples > 1 else None, deviation)


@torch.no_grad()
def check(restorer: Restorer, operator: Operator, shape: tuple[int, ...], solver: str | None, sigma_y: float) -> None:
    """Raises every ConfigError of :func:`restore` for images of ``shape`` = (C, *S); the network does not run."""
    name = solver_name(solver, operator)
    first = torch.zeros(1, dtype=torch.int64)
    rows = Rows(first, first, first, shape, restorer.family, restorer.scale)
    y = operator(torch.zeros(1, *shape))
    _refuse(restorer, posterior_of(restorer, name, operator, y, sigma_y, restorer.grid(restorer.sigma_max), rows, {}))


def _refuse(restorer: Restorer, posterior: Posterior) -> None:
    """Raises the ConfigErrors of a posterior that no chain can be run with."""
    sampler_of(restorer, posterior)
    if posterior.name != Projected.name:
        _ = posterior.linear


def posterior_of(
    restorer: Restorer,
    name: str,
    operator: Operator,
    y: Tensor,
    sigma_y: float,
    grid: Tensor,
    rows: Rows,
    options: dict[str, Any],
) -> Posterior:
    """The denoiser of the images behind y, by the solver of that name. Raises ConfigError for an unknown option."""
    settings: dict[str, Any] = dict(options)
    if name == Resampled.name:
        settings["noise"] = rows.source(BESIDE)
    elif name == Projected.name:
        settings |= {"sigmas": grid, "noise": rows.source()}
    elif name in ("matched", "guided"):
        settings.setdefault("sigma_data", restorer.sigma_data)
    try:
        return SOLVERS[name](restorer.denoiser, operator, y, sigma_y, **settings)
    except TypeError as error:
        raise ConfigError(f"solver {name!r}: {str(error).split('() ')[-1]}") from None


def sampler_of(restorer: Restorer, posterior: Posterior) -> str:
    """The restorer's sampler, or the solver's first. Raises ConfigError for one that the solver is not made for."""
    sampler = restorer.sampler or posterior.samplers[0]
    if sampler not in posterior.samplers:
        raise ConfigError(
            f"solver {posterior.name!r}: expected a sampler of {', '.join(posterior.samplers)}, found {sampler!r}"
        )
    return sampler

"""Counterfactuals: what an image would look like in another class, by a model that knows classes.

An image is taken up to a noise level, by the probability flow of its own class or by fresh noise, and down again by the
guided denoiser of the target class. What changes is what tells the classes apart (Wolleb et al. 2022, who encode so
and decode with the gradient of a classifier; here by classifier-free guidance, Ho & Salimans 2022).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anodiff.diffusion import NO_LABEL, SAMPLERS, classifier_free, image_keys, invert
from anodiff.diffusion.samplers import DenoiserFn
from anodiff.errors import ConfigError
from anodiff.restoration.arguments import check_images, kept_outside
from anodiff.restoration.chains import Rows, run_chains, watched
from anodiff.restoration.operators import Mask
from anodiff.restoration.solvers import Projected

if TYPE_CHECKING:
    from anodiff.restoration.restorer import Restorer

#: how an image is brought to the noise level
STARTS = ("inversion", "noise")
#: samplers that an inversion can be undone by
INVERTIBLE = ("heun", "ddim")
#: how far beyond the target class the estimate goes
GUIDANCE = 3.0


@dataclass(frozen=True)
class Counterfactual:
    """What N images would look like, on their own device.

    images: (N, C, *S) float32. difference: the image minus that; positive where the image is brighter.
    nfe: denoiser calls an image, a guided estimate counting two.
    """

    images: Tensor
    difference: Tensor
    nfe: int


def class_index(name: str, classes: Sequence[str], option: str = "class") -> int:
    """The number of a class. Raises ConfigError where it is unknown, or the model knows none."""
    if not classes:
        raise ConfigError(f"{option}: expected a model that was trained with classes (conditioning), found one without")
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option}: expected one of {', '.join(classes)}, found {name!r}{hint}")
    return list(classes).index(name)


def of_class(restorer: Restorer, name: str | None, guidance: float = 1.0, option: str = "class") -> DenoiserFn:
    """The restorer's denoiser of a class with guidance; of None that over all classes."""
    label = NO_LABEL if name is None else class_index(name, restorer.classes, option)
    if not restorer.classes:
        return restorer.denoiser
    return classifier_free(restorer.denoiser, label, guidance, clip=restorer.clip)


def check_class(restorer: Restorer, label: str | None, guidance: float) -> None:
    """Raises the ConfigErrors of :meth:`Restorer.generate` that are about a class."""
    if label is None and guidance != 1:
        raise ConfigError(f"guidance: expected a class that it leads to, found a weight of {guidance:g} alone")
    if label is not None:
        of_class(restorer, label, guidance)


@torch.no_grad()
def counterfactual(
    restorer: Restorer,
    x: Tensor,
    target: str,
    sigma: float | None = None,
    mask: Tensor | None = None,
    *,
    strength: float | None = None,
    source: str | None = None,
    guidance: float = GUIDANCE,
    start: str = "inversion",
    seed: int | None = None,
) -> Counterfactual:
    """Images (N, C, *S) as they would look in the class ``target``, and what that changes.

    Args:
        sigma, strength: the level in between, see :meth:`Restorer.edit`: what it drowns may change.
        mask: (*S) or (N, *S), True may change; every other voxel is kept bit for bit.
        source: the class the images are of, for the inversion; None inverts by the estimate over all classes.
        guidance: weight of the target class, 1 its plain estimate, more beyond it.
        start: "inversion", deterministic: an image that is as the target class would have it comes back up to the error
            of the steps; or "noise", a draw of ``seed``.

    Raises:
        ConfigError: an unknown class or start, a weight or a level out of range, a mask of another size, a sampler
            that an inversion cannot be undone by, a source without an inversion.
        InputError: pixels that are not finite.
    """
    check_images(x)
    level = restorer.edit_level(sigma, strength)
    down, up, grid, sampler = _ways(restorer, target, level, source, guidance, start)
    kept = kept_outside(mask, x)
    fall = len(grid) - 1
    risen = 0 if up is None else fall

    def chain(rows: Rows) -> Tensor:
        noise = rows.source()
        clean = x[rows.image.to(x.device)].to(restorer.denoiser.device, torch.float32)
        begin = clean + level * noise(0) if up is None else invert(up, clean, grid.flip(0), sampler, watched(rows.tell))
        walked: DenoiserFn = down
        if kept is not None:
            part = Mask(~kept).rows(rows.image)
            walked = Projected(down, part, part(clean))
        return SAMPLERS[sampler](walked, begin, grid, noise, watched(rows.tell, before=risen))

    keys = image_keys(x, restorer.seed if seed is None else seed)
    settings = (restorer.family, restorer.scale, risen + fall, restorer.on_step)
    drawn, nfe, _ = run_chains(restorer.denoiser, chain, keys, 1, tuple(x.shape[1:]), *settings)
    images = drawn[:, 0].to(x.device)
    images = images if kept is None else torch.where(kept, x, images)
    return Counterfactual(images, x - images, nfe)


def check(restorer: Restorer, target: str, sigma: float, source: str | None, guidance: float, start: str) -> None:
    """Raises every ConfigError of :func:`counterfactual` that needs no image."""
    _ways(restorer, target, sigma, source, guidance, start)


def _ways(
    restorer: Restorer, target: str, level: float, source: str | None, guidance: float, start: str
) -> tuple[DenoiserFn, DenoiserFn | None, Tensor, str]:
    """The denoiser down, the one up (None: noise), the grid down, and the sampler's name."""
    if start not in STARTS:
        raise ConfigError(f"start: expected one of {', '.join(STARTS)}, found {start!r}")
    class_index(target, restorer.classes)
    down = of_class(restorer, target, guidance)
    if start == "noise":
        if source is not None:
            raise ConfigError(f"source class: expected a start by inversion, which it belongs to, found {start!r}")
        return down, None, restorer.grid(level), restorer.sampler or "dpmpp"
    sampler = restorer.sampler or INVERTIBLE[0]
    if sampler not in INVERTIBLE:
        raise ConfigError(f"sampler: expected {' or '.join(INVERTIBLE)} with a start by inversion, found {sampler!r}")
    # A level above 0 at the end: that which the inversion took the image to be at.
    return down, of_class(restorer, source, option="source class"), restorer.grid(level, final_zero=False), sampler

"""Style transfer that keeps the content: a bridge between two models, or one model and one exemplar; no training.

- Bridge (Su et al. 2023): the probability flow of the source model takes an image to its latent, that of the target
  model takes the latent back to an image. Deterministic, and each site needs its own model only.
- Exemplar: the same with one model up to a middle level; on the way down, the estimate's patches are moved towards
  those of the exemplar by the gradient of their sliced-Wasserstein distance (statistics guidance).
- Anchor, for both: the low frequencies of every estimate are those of the content, D + blur(content - D).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.diffusion import invert, sample_heun
from anodiff.diffusion.samplers import DenoiserFn
from anodiff.errors import ConfigError
from anodiff.restoration.arguments import check_images
from anodiff.restoration.chains import Tell, teller, watched
from anodiff.restoration.operators import gaussian_blur
from anodiff.restoration.restorer import GRIDS, Restorer

#: sides of the patches whose statistics are a style, at full and at half resolution
PATCH, SCALES = 5, 2
#: random orthonormal bases of the space of patches: the directions of the sliced distance, the same for every image
BASES = 2
#: where a style is put on, unless said otherwise: high enough for texture, low enough for layout
EXEMPLAR_SIGMA = 0.5


@dataclass(frozen=True)
class Stylized:
    """N images in another style, on their own device.

    images: (N, C, *S) float32. back: what styling them back gives, to be compared with the input, where asked for.
    nfe: denoiser calls an image, of both models together, the way back included.
    """

    images: Tensor
    back: Tensor | None
    nfe: int


@torch.no_grad()
def stylize(
    source: Restorer,
    x: Tensor,
    *,
    target: Restorer | None = None,
    style: Tensor | None = None,
    sigma: float | None = None,
    weight: float = 1.0,
    anchor_px: float = 0.0,
    cycle: bool = False,
) -> Stylized:
    """Images (N, C, *S) with their content in the style of a target model or of an exemplar; Heun's method both ways.

    Args:
        source: of the model that knows the inputs; its ``steps`` and grid are those of both ways (4 calls a step).
        target: of the model whose style it shall be.
        style: (1, C, *S), an exemplar; the images must be 2-D.
        sigma: the level between the two ways; None is the highest that both models know, or ``EXEMPLAR_SIGMA``.
        weight: of the exemplar's statistics, 1 moves every estimate's patches all the way.
        anchor_px: deviation of the blur that takes low frequencies from the content; 0 is no anchor.
        cycle: also style the results back: by the bridge the other way, or with the input as the exemplar.

    Raises:
        ConfigError: neither or both of target and style, one of another shape, or a number out of range.
        InputError: pixels that are not finite.
    """
    check_images(x)
    if (target is None) == (style is None):
        raise ConfigError(
            f"stylize: expected a target model or an exemplar, found {'none' if style is None else 'both'}"
        )
    if style is not None and (x.ndim != 4 or style.shape != (1, *x.shape[1:])):
        raise ConfigError(f"style: expected one image of shape {tuple(x.shape[1:])}, found {tuple(style.shape)}")
    if not weight >= 0 or not anchor_px >= 0:
        raise ConfigError(f"stylize: expected a weight and an anchor of 0 or more, found {weight} and {anchor_px}")
    grid = bridge_grid(source, target or source, sigma)
    other = target or source

    steps = len(grid) - 1

    def way(
        start: Restorer, end: Restorer, images: Tensor, exemplar: Tensor | None, tell: Tell | None, before: int = 0
    ) -> Tensor:
        wrapped = _anchored(_guided(end.denoiser, exemplar, weight), images, anchor_px)
        latent = invert(start.denoiser, images, grid, "heun", watched(tell, before=before))
        return sample_heun(wrapped, latent, grid.flip(0), None, watched(tell, before=before + steps))

    size, calls = source.denoiser.network_batch, _calls(source, other)
    styled, returned = [], []
    for first in range(0, len(x), size):
        tell = teller(source.on_step, (4 if cycle else 2) * steps, first // size + 1, -(-len(x) // size))
        rows = torch.arange(first, first + size).clamp(max=len(x) - 1)  # copies: one shape, the same bits
        part = x[rows.to(x.device)].to(source.denoiser.device, torch.float32)
        exemplar = None if style is None else style.to(part).expand_as(part)
        made = way(source, other, part, exemplar, tell)
        styled.append(made[: len(x) - first])
        if cycle:
            exemplar = None if style is None else part
            returned.append(way(other, source, made, exemplar, tell, 2 * steps)[: len(x) - first])
    nfe = (_calls(source, other) - calls) // (len(styled) * size)
    back = torch.cat(returned).to(x.device) if cycle else None
    return Stylized(torch.cat(styled).to(x.device), back, nfe)


def bridge_grid(source: Restorer, target: Restorer, sigma: float | None) -> Tensor:
    """Ascending levels between what both models know; ``sigma`` its upper end. Raises ConfigError for one beyond."""
    low, top = max(source.sigma_min, target.sigma_min), min(source.sigma_max, target.sigma_max)
    high = sigma if sigma is not None else (top if source is not target else min(top, EXEMPLAR_SIGMA))
    if not low < high <= top:
        raise ConfigError(
            f"sigma: expected a level above {low:.4g} and up to {top:.4g}, which both models know, found {high:.4g}"
        )
    return GRIDS[source.grid_name](high, low, source.steps + 1, final_zero=False).flip(0)


def style_distance(images: Tensor, style: Tensor) -> Tensor:
    """(N,) sliced-Wasserstein distance of the patches of images (N, C, H, W) from those of the styles (M, C, H, W).

    The root mean square, over scales, by which a pixel's values have to change; the patches of all styles are pooled.
    """
    total = images.new_zeros(len(images))
    for scale in range(SCALES):
        found, wanted = _projected(images, scale), _projected(style.to(images), scale)
        pooled = wanted.transpose(0, 1).flatten(1)[None]
        total = total + (_sorted(found) - _quantiles(pooled, found.shape[2])).square().mean((1, 2))
    return (total / SCALES).sqrt()


def content_similarity(images: Tensor, contents: Tensor) -> list[float]:
    """Structural similarity (Wang et al. 2004, Gaussian weights) of each pair (N, C, H, W) in [-1, 1]; 1 is equal."""
    from skimage.metrics import structural_similarity

    pairs = zip(images.cpu().numpy().astype(np.float64), contents.cpu().numpy().astype(np.float64), strict=True)
    return [
        float(
            structural_similarity(
                a, b, data_range=2.0, channel_axis=0, gaussian_weights=True, use_sample_covariance=False
            )
        )
        for a, b in pairs
    ]


def _anchored(denoiser: DenoiserFn, content: Tensor, anchor_px: float) -> DenoiserFn:
    if not anchor_px:
        return denoiser
    blur = gaussian_blur(anchor_px)

    def anchored(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        return denoised + blur(content - denoised)

    return anchored


def _guided(denoiser: DenoiserFn, style: Tensor | None, weight: float) -> DenoiserFn:
    """D* = D - weight * (values / 2) * gradient of the squared sliced distance: at weight 1 the whole transport."""
    if style is None or not weight:
        return denoiser
    wanted = [_sorted(_projected(style, scale)) for scale in range(SCALES)]

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        for scale in reversed(range(SCALES)):
            denoised = denoised - weight * _pull(denoised, wanted[scale], scale)
        return denoised

    return guided


def _pull(images: Tensor, wanted: Tensor, scale: int) -> Tensor:
    """What moves the patches of a scale on to the wanted quantiles: the gradient, in full steps (see `_guided`)."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.clone().requires_grad_()
        found = _projected(leaf, scale)
        loss = (_sorted(found) - wanted.clone()).square().mean((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    # The mean over p orthonormal directions sees 1/p of a patch's change, and a pixel lies in p / channels patches.
    return gradient * (found.shape[2] * images.shape[1] / 2 * 4**scale)


def _projected(images: Tensor, scale: int) -> Tensor:
    """(N, K, patches): the patches of images (N, C, H, W), averaged to a scale, along K unit directions."""
    if scale:
        images = F.avg_pool2d(images, 2**scale, ceil_mode=True)
    size = images.shape[1] * PATCH**2
    generator = torch.Generator().manual_seed(scale)
    drawn = torch.randn(BASES, size, size, generator=generator, dtype=torch.float64)
    unit = torch.linalg.qr(drawn).Q.reshape(-1, images.shape[1], PATCH, PATCH)
    return F.conv2d(F.pad(images, (PATCH // 2,) * 4, mode="reflect"), unit.to(images)).flatten(2)


def _sorted(values: Tensor) -> Tensor:
    return values.sort(dim=2).values


def _quantiles(values: Tensor, count: int) -> Tensor:
    """(N, K, count) evenly spaced quantiles of values (N, K, M); all of them where M = count."""
    ordered = _sorted(values)
    if ordered.shape[2] == count:
        return ordered
    place = (torch.arange(count, device=values.device, dtype=torch.float64) + 0.5) / count * ordered.shape[2] - 0.5
    place = place.clamp(0, ordered.shape[2] - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=ordered.shape[2] - 1)
    return torch.lerp(ordered[..., low], ordered[..., high], (place - low).to(ordered))


def _calls(*restorers: Restorer) -> int:
    return sum(each.denoiser.calls for each in {id(each): each for each in restorers}.values())

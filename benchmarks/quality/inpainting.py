"""Inpainting scattered pixels and a box: our solvers, biharmonic inpainting, a MONAI RePaint loop, one network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.data.layouts import load_table
from anodiff.data.table import select
from anodiff.diffusion import image_keys
from anodiff.model import load
from anodiff.pipelines.common import file_digest
from anodiff.restoration import Restorer
from benchmarks.quality.kept import kept
from benchmarks.quality.repaint_monai import repaint

#: share of scattered pixels, and side of the box
SCATTERED, BOX = 0.25, 32
MASKS = ("25 % of pixels", f"{BOX}x{BOX} box")


@dataclass(frozen=True)
class Way:
    """One of our ways to fill: solver, steps, samples that are averaged (from two on in pairs of opposite noise), and
    the grid of the levels."""

    solver: str
    steps: int
    samples: int
    options: dict[str, Any] = field(default_factory=dict)
    grid: str = "karras"


SCATTERED_WAY, BOX_WAY = "anodiff matched, mean of 4", "anodiff resampled, mean of 2"
OURS = {
    "anodiff matched, one sample": Way("matched", 16, 1),
    SCATTERED_WAY: Way("matched", 12, 4),
    "anodiff resampled, one sample": Way("resampled", 48, 1, {"repeats": 10}, "log"),
    BOX_WAY: Way("resampled", 24, 2, {"repeats": 10}, "log"),
    "anodiff guided, mean of 8": Way("guided", 16, 8),
    "anodiff proximal, one sample": Way("proximal", 32, 1),
    "anodiff proximal, mean of 14": Way("proximal", 32, 14),
}
#: ours for each kind of hole, chosen on held-out normals of the training folders
CHOSEN = dict(zip(MASKS, (SCATTERED_WAY, BOX_WAY), strict=True))
BIHARMONIC, REPAINT = "scikit-image biharmonic", "RePaint on MONAI's scheduler"
#: a gradient of the denoiser costs about as much as two calls
GRADIENT_COST = 2

Fill = Callable[[Tensor, Tensor], tuple[Tensor, int]]


def evidence(
    models: dict[str, Path],
    data: dict[str, Path],
    work: Path,
    *,
    device: str,
    precision: str,
    seed: int,
    images: int,
    schedule: tuple[int, int, int],
) -> dict[str, Any]:
    """By data set and mask, every method's PSNR and SSIM in the hole, seconds and network calls an image.

    images: of each test split's normal ones, drawn by the seed. schedule: RePaint's steps, jump length and repeats.
    """
    found: dict[str, Any] = {}
    for name, path in models.items():
        model = load(path)
        clean, foreground = test_images(model, data[name], images, seed)
        common = {"seed": seed, "images": len(clean), "model": file_digest(path), "precision": precision}
        found[name] = {
            "images": len(clean),
            "size": list(clean.shape[1:]),
            "noise": model.config.diffusion.noise,
            "chosen": CHOSEN,
        }
        for kind, missing in zip(MASKS, holes(clean, foreground, seed), strict=True):
            fills = methods(model, device, precision, seed, len(clean), schedule)
            rows = {
                method: kept(
                    work / f"inpaint_{name}_{kind.split()[0].replace('/', '')}_{method}.json",
                    {**common, "mask": kind, "method": settings},
                    partial(measured, clean, missing, fill),
                )
                for method, (settings, fill) in fills.items()
            }
            found[name][kind] = rows
    return found


def test_images(model: Any, data: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normal images of test as the model sees them (N, C, h, w), and their foreground (N, h, w)."""
    paths = list(select(load_table(data), "test", normal_only=True).table["path"])
    drawn = sorted(np.random.default_rng(seed).permutation(len(paths))[:count])
    images, foreground = model.prepare([paths[n] for n in drawn])
    return images, foreground


def holes(images: Tensor, foreground: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What is missing (N, h, w), twice: scattered pixels, and a box whose middle lies in the foreground."""
    scattered, boxes = torch.zeros_like(foreground), torch.zeros_like(foreground)
    height, width = foreground.shape[1:]
    for row, key in enumerate(image_keys(images, seed).tolist()):
        rng = np.random.default_rng(key)
        scattered[row] = torch.from_numpy(rng.random((height, width)) < SCATTERED)
        inside = foreground[row].clone()
        half = BOX // 2
        allowed = torch.zeros_like(inside)
        allowed[half : height - half + 1, half : width - half + 1] = True
        places = (inside & allowed).nonzero()
        places = places if len(places) else allowed.nonzero()
        y, x = places[int(rng.integers(len(places)))].tolist()
        boxes[row, y - half : y + half, x - half : x + half] = True
    return scattered, boxes


def methods(
    model: Any, device: str, precision: str, seed: int, batch: int, schedule: tuple[int, int, int]
) -> dict[str, tuple[dict[str, Any], Fill]]:
    """Every method: the settings that decide its result, and (images, missing (N, h, w)) -> filled, network calls."""
    found: dict[str, tuple[dict[str, Any], Fill]] = {}
    options: dict[str, Any] = {"device": device, "precision": precision, "seed": seed, "network_batch": batch}
    for name, way in OURS.items():
        restorer = Restorer(model, steps=way.steps, grid=way.grid, **options)
        settings = asdict(way) | {"antithetic": way.samples > 1}
        found[name] = (settings, partial(by_solver, restorer, way))
    found[BIHARMONIC] = ({}, biharmonic)
    loop = dict(zip(("steps", "jump", "repeats"), schedule, strict=True))
    found[REPAINT] = (loop, partial(by_repaint, Restorer(model, **options), seed, loop))
    return found


def by_solver(restorer: Restorer, way: Way, images: Tensor, missing: Tensor) -> tuple[Tensor, int]:
    """Our solvers; the mean of samples is nearer to the truth than each of them. A gradient counts as two calls."""
    found = restorer.inpaint(
        images, missing, solver=way.solver, samples=way.samples, antithetic=way.samples > 1, **way.options
    )
    return found.averaged().images, found.nfe + GRADIENT_COST * found.gradients


def biharmonic(images: Tensor, missing: Tensor) -> tuple[Tensor, int]:
    """Damelin and Hoang 2018, as scikit-image does it."""
    from skimage.restoration import inpaint_biharmonic

    pairs = zip(images.double().numpy(), missing.numpy(), strict=True)
    filled = [inpaint_biharmonic(np.moveaxis(image, 0, -1), hole, channel_axis=-1) for image, hole in pairs]
    return torch.from_numpy(np.moveaxis(np.stack(filled), -1, 1)).float(), 0


def by_repaint(
    restorer: Restorer, seed: int, loop: dict[str, int], images: Tensor, missing: Tensor
) -> tuple[Tensor, int]:
    """The loop of `repaint_monai` on the same network, from the same highest level and about the same mean."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return restorer.denoiser(x, sigma).cpu()

    hidden = torch.where(missing[:, None], 0, images)
    start = {"sigma_max": restorer.sigma_max, "mean": restorer.mean(tuple(images.shape[1:])).cpu()}
    return repaint(denoise, hidden, missing[:, None], **start, seed=seed, **loop)


def measured(images: Tensor, missing: Tensor, fill: Fill) -> dict[str, Any]:
    """PSNR and SSIM inside the holes (means over images), and seconds and network calls an image."""
    began = time.perf_counter()
    # What a hole holds is hidden: no method may look.
    filled, calls = fill(torch.where(missing[:, None], 0, images), missing)
    seconds = (time.perf_counter() - began) / len(images)
    filled = torch.where(missing[:, None], filled.cpu().clamp(-1, 1), images)
    values = [inside(*each) for each in zip(filled, images, missing, strict=True)]
    quality = np.asarray(values)
    return {
        "psnr": float(quality[:, 0].mean()),
        "ssim": float(quality[:, 1].mean()),
        "psnr_each": [round(float(value), 4) for value in quality[:, 0]],
        "seconds": seconds,
        "calls": calls,
    }


def inside(filled: Tensor, truth: Tensor, missing: Tensor) -> tuple[float, float]:
    """PSNR of the missing pixels of (C, h, w) in [-1, 1], and the mean of the SSIM map (Wang et al. 2004) there."""
    from skimage.metrics import structural_similarity

    found, wanted = filled.double().numpy(), truth.double().numpy()
    hole = missing.numpy()
    error = float(((found - wanted)[:, hole] ** 2).mean())
    _, similar = structural_similarity(
        found,
        wanted,
        data_range=2.0,
        channel_axis=0,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    return 10 * float(np.log10(4 / max(error, 1e-12))), float(similar[:, hole].mean())

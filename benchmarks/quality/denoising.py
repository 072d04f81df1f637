"""Grey denoising on BSD68 and Set12: one call of our denoiser beside scikit-image, whose settings Train400 chose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.config import PreprocessConfig
from anodiff.data.layouts.folder import list_images
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import read_image
from anodiff.diffusion import image_keys, sample_noise
from anodiff.model import load
from anodiff.pipelines.common import file_digest
from anodiff.restoration import Restorer
from anodiff.restoration.style import content_similarity
from benchmarks.quality.kept import kept

SETS = ("BSD68", "Set12")
#: standard deviations of the noise, in grey levels of 256
LEVELS = (15, 25, 50)
#: calls of a posterior sample
SAMPLE_STEPS = 10
#: Zhang et al. 2017 (DnCNN), tables II and III: mean PSNR at each of LEVELS
PUBLISHED = {
    "BM3D (published)": {"BSD68": (31.07, 28.57, 25.62), "Set12": (32.37, 29.97, 26.72)},
    "DnCNN-S (published)": {"BSD68": (31.73, 29.23, 26.23), "Set12": (32.86, 30.44, 27.18)},
}
Image = NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """A denoiser of scikit-image: (image in [0, 1], deviation of its noise, options) -> image; options to choose of."""

    run: Callable[..., Image]
    options: tuple[dict[str, Any], ...]


def non_local_means(image: Image, sigma: float, *, patch: int, strength: float) -> Image:
    """Buades et al. 2005, in the fast form of Darbon et al. 2008; search window 23x23."""
    from skimage.restoration import denoise_nl_means

    found = denoise_nl_means(image, patch_size=patch, patch_distance=11, h=strength * sigma, sigma=sigma)
    return np.asarray(found)


def wavelet(image: Image, sigma: float, *, basis: str, mode: str) -> Image:
    """BayesShrink (Chang et al. 2000), the mean over 16 shifts (Coifman and Donoho 1995)."""
    from skimage.restoration import cycle_spin, denoise_wavelet

    options = {"sigma": sigma, "wavelet": basis, "mode": mode, "method": "BayesShrink", "rescale_sigma": True}
    return np.asarray(cycle_spin(image, func=denoise_wavelet, max_shifts=3, func_kw=options, workers=1))


def total_variation(image: Image, sigma: float, *, strength: float) -> Image:
    """Rudin et al. 1992, by Chambolle's algorithm (2004)."""
    from skimage.restoration import denoise_tv_chambolle

    return np.asarray(denoise_tv_chambolle(image, weight=strength * sigma, max_num_iter=200))


BASELINES = {
    "scikit-image non-local means": Baseline(
        non_local_means,
        tuple({"patch": p, "strength": s} for p in (3, 5, 7) for s in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    ),
    "scikit-image wavelet (BayesShrink)": Baseline(
        wavelet, tuple({"basis": b, "mode": m} for b in ("db2", "sym4", "sym8") for m in ("soft", "hard"))
    ),
    "scikit-image total variation": Baseline(
        total_variation, tuple({"strength": s} for s in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2))
    ),
}


def evidence(
    model: Path,
    data: Path,
    work: Path,
    *,
    device: str,
    precision: str,
    seed: int,
    subset: int | None,
    tune_images: int,
    samples: bool,
) -> dict[str, Any]:
    """PSNR, SSIM and seconds an image of every method, set and level; from the work folder where they are there.

    data: the folder with Train400, BSD68 and Set12. subset: only so many images of each test set. tune_images: of
    Train400, on which the baselines' options are chosen. samples: also one posterior sample an image.
    """
    common = {"seed": seed, "subset": subset}
    rows: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, baseline in BASELINES.items():
        options[name] = kept(
            work / f"denoise_options_{name}.json",
            {"seed": seed, "images": tune_images, "options": baseline.options, "levels": LEVELS},
            partial(chosen, baseline, data / "Train400", tune_images, seed),
        )
        rows[name] = {
            test: kept(
                work / f"denoise_{test}_{name}.json",
                {**common, "options": options[name]},
                partial(measured, data / test, partial(by_baseline, baseline, options[name]), seed, subset),
            )
            for test in SETS
        }
    network = load(model)
    restorer = Restorer(network, device=device, precision=precision, steps=SAMPLE_STEPS, sampler="ancestral", seed=seed)
    settings = {**common, "model": file_digest(model), "precision": restorer.denoiser.precision}
    for name, count in {"anodiff, one call": 0, **({"anodiff, posterior sample": 1} if samples else {})}.items():
        rows[name] = {
            test: kept(
                work / f"denoise_{test}_{name}.json",
                {**settings, "steps": SAMPLE_STEPS * count},
                partial(measured, data / test, partial(by_model, restorer, count), seed, subset),
            )
            for test in SETS
        }
    used = restorer.denoiser.precision
    return {"options": options, "tune_images": tune_images, "subset": subset, "rows": rows, "precision": used}


def sigma_of(level: float) -> float:
    """A deviation in grey levels of 256, in units of [-1, 1]."""
    return 2 * level / 255


def pictures(folder: Path, count: int | None = None, seed: int = 0) -> list[Tensor]:
    """The grey images of a folder, (1, 1, H, W) in [-1, 1] each, on their own grids; or so many drawn by the seed."""
    paths = list_images(folder)
    if count is not None and count < len(paths):
        drawn = np.random.default_rng(seed).permutation(len(paths))[:count]
        paths = [paths[n] for n in sorted(drawn)]
    prepare = Preprocessor(PreprocessConfig(resize="none"), any_size=True)
    return [prepare(read_image(path)).image[None] for path in paths]


def noised(clean: Tensor, level: float, seed: int) -> Tensor:
    """White noise on top, neither clipped nor rounded, a function of the image, the level and the seed."""
    noise = sample_noise("gaussian", image_keys(clean, seed), tuple(clean.shape[1:]), level=round(level))
    return clean + sigma_of(level) * noise


def by_baseline(baseline: Baseline, options: dict[str, Any], images: Tensor, level: float) -> tuple[Tensor, int]:
    """Images (N, 1, H, W) denoised one by one with the options of that level; no network call."""
    found = [
        baseline.run((image[0].double().numpy() + 1) / 2, level / 255, **options[str(round(level))]) for image in images
    ]
    return torch.from_numpy(np.stack(found))[:, None].float() * 2 - 1, 0


def by_model(restorer: Restorer, samples: int, images: Tensor, level: float) -> tuple[Tensor, int]:
    """The estimate of one call, or a sample of the posterior; and the network calls an image of that alone."""
    found = restorer.denoise(images, sigma_of(level), samples=samples)
    if not samples:
        return found.images, found.nfe
    assert found.samples is not None
    return found.samples[:, 0], found.nfe - 1


def psnr(found: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of values in [-1, 1]."""
    return float(10 * torch.log10(4 / (found.double() - clean.double()).square().mean()))


def measured(
    folder: Path,
    method: Callable[[Tensor, float], tuple[Tensor, int]],
    seed: int,
    subset: int | None,
) -> dict[str, Any]:
    """By level: mean PSNR and SSIM over the images of a folder, PSNR of each, and seconds and calls an image."""
    return {str(level): scores(pictures(folder, subset, seed), method, level, seed) for level in LEVELS}


def scores(
    images: list[Tensor], method: Callable[[Tensor, float], tuple[Tensor, int]], level: float, seed: int
) -> dict[str, Any]:
    """See `measured`; images of one size go to the method together."""
    each: dict[int, tuple[float, float]] = {}
    seconds, nfe = 0.0, 0
    for rows in by_size(images):
        clean = torch.cat([images[row] for row in rows])
        noisy = torch.cat([noised(images[row], level, seed) for row in rows])
        began = time.perf_counter()
        found, nfe = method(noisy, level)
        seconds += time.perf_counter() - began
        found = found.cpu().clamp(-1, 1)
        for row, image, truth, similar in zip(rows, found, clean, content_similarity(found, clean), strict=True):
            each[row] = (psnr(image, truth), similar)
    values = np.asarray([each[row] for row in range(len(images))])
    return {
        "psnr": float(values[:, 0].mean()),
        "ssim": float(values[:, 1].mean()),
        "psnr_each": [round(value, 4) for value in values[:, 0]],
        "seconds": seconds / len(images),
        "nfe": nfe,
        "images": len(images),
    }


def by_size(images: list[Tensor]) -> Iterator[list[int]]:
    """Numbers of the images of each size."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(tuple(image.shape), []).append(row)
    yield from rows.values()


def chosen(baseline: Baseline, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """By level, the options of the highest mean PSNR on images that no test set holds."""
    images = pictures(folder, count, seed)

    def quality(level: float, options: dict[str, Any]) -> float:
        method = partial(by_baseline, baseline, {str(level): options})
        return float(np.mean([psnr(method(noised(x, level, seed), level)[0].clamp(-1, 1), x) for x in images]))

    return {str(level): max(baseline.options, key=partial(quality, level)) for level in LEVELS}

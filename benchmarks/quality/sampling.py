"""Samples of 20 network calls and of 1000 ancestral ones, each set against real images that were held out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.data.layouts import load_table
from anodiff.data.table import select
from anodiff.metrics.generation import Described, bootstrap_distances, described, distances, nearest
from anodiff.model import DiffusionModel, load
from anodiff.pipelines.common import file_digest
from anodiff.restoration import Restorer
from anodiff.restoration.quality import encoded, interval
from benchmarks.quality.kept import kept

#: name -> sampler, steps
CHAINS = {"dpmpp, 20 calls": ("dpmpp", 20), "ancestral, 1000 calls": ("ancestral", 1000)}
FEW, MANY = CHAINS
RESAMPLES = 200
#: raised by hand with a change of what is measured or how, since no digest sees code
PROCEDURE = 1


def evidence(
    model: Path,
    data: Path,
    work: Path,
    *,
    device: str,
    precision: str,
    seed: int,
    images: int,
    chains: dict[str, tuple[str, int]] = CHAINS,
) -> dict[str, Any]:
    """Distances of each chain's images from real ones, with intervals, and their differences; kept in the work folder.

    images: so many of each chain; as many held-out real ones are the yardstick, all others held out the real set.
    """
    settings = {
        "model": file_digest(model), "seed": seed, "images": images, "chains": chains, "precision": precision,
        "procedure": PROCEDURE,
    }  # fmt: skip
    make = partial(compared, model, data, images, seed, device, precision, chains, work)
    return kept(work / "sampling.json", settings, make)


def compared(
    model_path: Path,
    data: Path,
    images: int,
    seed: int,
    device: str,
    precision: str,
    chains: dict[str, tuple[str, int]],
    work: Path,
) -> dict[str, Any]:
    """See `evidence`. Chains are drawn in batches that are kept, so that a stopped run goes on.

    Their images of one number come from one start noise and stay together when they are resampled.
    """
    model = load(model_path)
    options: dict[str, Any] = {"device": device, "precision": precision, "seed": seed}
    train, real = real_images(model, data)
    order = np.random.default_rng(seed).permutation(len(real))
    held, wanted = real[order[:images]], real[order[images:]]
    looker = Restorer(model, **options)
    sets = {"real, held out": held}
    drawn_by = f"{file_digest(model_path)[:8]}_{looker.denoiser.precision}_{seed}"
    for name, (sampler, steps) in chains.items():
        restorer = Restorer(model, steps=steps, sampler=sampler, **options)
        sets[name] = drawn(restorer, images, work / f"samples_{sampler}_{steps}_{drawn_by}.pt")
    reference = seen(looker, wanted)
    pools = {name: seen(looker, part) for name, part in sets.items()}
    values = {name: distances(pool, reference) for name, pool in pools.items()}
    resampled = {name: bootstrap_distances(pools[name], reference, RESAMPLES, seed) for name in pools}
    few, many = list(chains)
    return {
        "images": images,
        "real_images": len(wanted),
        "values": values,
        "intervals": {
            name: {statistic: interval(each) for statistic, each in found.items()} for name, found in resampled.items()
        },
        "difference": {
            statistic: {
                "value": values[few][statistic] - values[many][statistic],
                "ci95": interval(resampled[few][statistic] - resampled[many][statistic]),
            }
            for statistic in values[few]
        },
        "nearest_training": {
            name: float(np.median(nearest(part.numpy(), train.numpy())[1])) for name, part in sets.items()
        },
    }


def real_images(model: DiffusionModel, data: Path) -> tuple[Tensor, Tensor]:
    """Normal images as the model sees them: those it was trained on, and those of val and test."""
    samples = load_table(data)
    train, *held = (list(select(samples, split, normal_only=True).table["path"]) for split in ("train", "val", "test"))
    return model.prepare(train)[0], model.prepare([path for part in held for path in part])[0]


def drawn(restorer: Restorer, count: int, path: Path) -> Tensor:
    """The first ``count`` images of the restorer's seed, clipped; finished batches are read again from the file."""
    from anodiff.files import atomic_write, make_folder

    batch = restorer.denoiser.network_batch
    found: Tensor = torch.load(path, weights_only=True) if path.exists() else torch.zeros(0)
    for first in range(len(found) // batch * batch, count, batch):
        part = restorer.generate(range(first, min(first + batch, count))).images.clamp(-1, 1)
        found = torch.cat([found[:first], part]) if first else part
        make_folder(path.parent)
        atomic_write(path, partial(torch.save, found))
        print(f"{path.stem}: {len(found)} of {count} images", flush=True)
    return found[:count]


def seen(restorer: Restorer, images: Tensor) -> Described:
    """What the statistics see; features are those of the model's own encoder."""
    return described(images.numpy(), encoded(restorer, images))

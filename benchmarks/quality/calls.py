"""Quality against denoiser calls an image (NFE): a curve per data set of the quality table, for a model that is there.

    python -m benchmarks.quality.calls --data ../shared/data --work runs/table
    python -m benchmarks.quality.calls --data ../shared/data --work runs/table --sets bottle --subset 20

The models are those that benchmarks.quality.table trained; a set without one is left out. Three ways to spend calls,
each at 1, 2, 4, 8 and 16 (see `families`), beside the default preset and the tuned one where there is one. All else
(residual, polarity, standardisation, limits, smoothing, score) is the default preset's, and every point is fitted on
the same normals and measured on the same images.

No test image is read. What is measured on, by one rule: the labelled `dev` split where the data set stores one (only
brain_lgg does), otherwise held-out normals of `val`, each as it is and once with a planted anomaly, the kinds in turn.
No setting is chosen from the curve; the tuned preset was chosen on such planted anomalies, which flatters it there.

A finished part is kept in WORK/SET/calls and is not done twice. Writes calls.json, CALLS.md and calls.png beside this
file; about ten minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anodiff.anomaly import DetectorSettings, resolve
from anodiff.anomaly.planted import Normals, PlantedImages
from anodiff.anomaly.planting import kinds_for, plant
from anodiff.anomaly.presets import change
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.data.layouts import load_table
from anodiff.errors import AnodiffError, DataError
from anodiff.files import atomic_write, make_folder, write_json
from anodiff.metrics import bootstrap_intervals
from anodiff.metrics.pools import ImagePool, PixelPool, Pool
from anodiff.model import DiffusionModel, load
from anodiff.pipelines.calibration_normals import normal_parts
from anodiff.pipelines.common import drawn, file_digest
from anodiff.pipelines.tune import part
from anodiff.training.images import load_images
from benchmarks.quality import calls_page
from benchmarks.quality.kept import kept
from benchmarks.quality.oracle import LABELLED, Labelled, read_labelled
from benchmarks.quality.results import HERE
from benchmarks.quality.sets import SETS

#: calls an image
BUDGETS = (1, 2, 4, 8, 16)
#: where noise is added: the level of "reconstruct from sigma = 1" in benchmarks/speed
SIGMA = 1.0
#: raised by hand with a change of what is measured or how, since no digest sees code
PROCEDURE = 1


@dataclass(frozen=True)
class Family:
    """Points that are computed together. cached: the levels that the network is run at, if not each point's own."""

    name: str
    points: dict[int, DetectorSettings]
    cached: tuple[float, ...] = ()


def main(words: list[str] | None = None) -> int:
    """Makes what is missing of the chosen sets and writes the page; 1 where a set could not be measured."""
    chosen = parsed(words)
    known = stored(chosen.output)
    failed = False
    for name in chosen.sets:
        model = chosen.work / name / "coarse" / "model.safetensors"
        if not model.exists():
            print(f"{name}: left out, found no {model}; benchmarks.quality.table trains it")
            continue
        try:
            known[name] = curves(name, model, chosen)
        except AnodiffError as error:
            print(f"{name}: {error}")
            failed = True
            continue
        sets = {key: known[key] for key in SETS if key in known}
        make_folder(chosen.output)
        write_json(chosen.output / "calls.json", {"sigma": SIGMA, "budgets": BUDGETS, "sets": sets})
        atomic_write(chosen.output / "calls.png", calls_page.picture(sets))
        atomic_write(chosen.output / "CALLS.md", calls_page.markdown(sets, SIGMA))
        print(f"{name}: in {chosen.output / 'CALLS.md'}", flush=True)
    return int(failed)


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of all data sets")
    add("--work", type=Path, default=Path("runs/table"), help="that of benchmarks.quality.table")
    add("--output", type=Path, default=HERE, help="where CALLS.md, calls.json and calls.png are")
    add("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET", help=", ".join(SETS))
    add("--subset", type=int, default=40, help="images measured on, drawn at random")
    add("--normals", type=int, default=24, help="training normals that fit the normal error")
    add("--device", default="auto")
    add("--seed", type=int, default=0, help="of noise, planting and subsets")
    return parser.parse_args(words)


def stored(folder: Path) -> dict[str, Any]:
    """The sets that calls.json holds."""
    path = folder / "calls.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["sets"] if path.exists() else {}
    return found


def curves(name: str, model_path: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """All points of a data set, each family from what is kept or measured now.

    Raises:
        DataError: nothing to measure on.
    """
    split = SETS[name].split(chosen.data, chosen.work, chosen.seed)
    model = load(model_path)
    default = resolve("default", model.config)[1]
    groups = families(default, tuple(model.config.preprocess.size))
    tuned_path = model_path.with_name("tuned.safetensors")
    if tuned_path.exists():
        groups.append(preset_family("tuned", resolve("tuned", load(tuned_path).config)[1], model))
    made_from = {
        "model": file_digest(model_path), "split": file_digest(split), "seed": chosen.seed, "subset": chosen.subset,
        "normals": chosen.normals, "procedure": PROCEDURE,
    }  # fmt: skip
    images: list[tuple[Normals, Labelled]] = []  # read once, and only where something is missing

    def measured(family: Family) -> dict[str, Any]:
        if not images:
            images.append(sample(model, split, default, chosen))
        return measure(model, family, *images[0], device=chosen.device, seed=chosen.seed)

    found = {}
    for family in groups:
        settings = {"points": {str(nfe): each.to_json() for nfe, each in family.points.items()}}
        path = chosen.work / name / "calls" / f"{family.name}.json"
        found[family.name] = kept(path, made_from | settings, lambda family=family: measured(family))  # type: ignore[misc]
    splits = set(load_table(split).table["split"])
    return {
        "measured_on": "dev" if "dev" in splits else "planted",
        "metric": "pixel_ap" if bool((load_table(split).table["mask"] != "").any()) else "image_auroc",
        "families": found,
    }


def families(default: DetectorSettings, size: tuple[int, ...]) -> list[Family]:
    """The ways to spend calls, and the default preset at its own number of them.

    levels: one call at each of n levels on the image as it is, without noise: the middles of n equal shares of 16
        levels, log-spaced over the preset's range. draws: one level, SIGMA, the mean of n one-step reconstructions from
        noise of the training's family, in pairs +noise, -noise from 2 on. steps: one chain of n DPM-Solver++ steps
        from SIGMA down to 0.
    """
    most = BUDGETS[-1]
    grid = np.geomspace(min(default.levels), max(default.levels), most).tolist()
    alone = change(default, {"pairs": 1, "antithetic": False, "noise": "none", "noise_scale": "unit"}, "levels")
    return [
        preset_family("default", default, size=size),
        Family(
            "levels",
            {n: change(alone, {"levels": tuple(shares(grid, n))}, "levels") for n in BUDGETS},
            cached=tuple(grid),
        ),
        Family("draws", {n: noisy(default, {"pairs": max(1, n // 2), "antithetic": n > 1}) for n in BUDGETS}),
        Family("steps", {n: noisy(default, {"sampler": "dpmpp", "steps": n}) for n in BUDGETS}),
    ]


def shares(grid: list[float], count: int) -> list[float]:
    """The middles of ``count`` equal shares of a grid, as near as its values allow."""
    return [grid[int((k + 0.5) * len(grid) / count)] for k in range(count)]


def noisy(default: DetectorSettings, slots: dict[str, Any]) -> DetectorSettings:
    """The default preset with noise of the training at the level SIGMA, still to be resolved."""
    same = {"noise": "model", "noise_scale": "model", "levels": (SIGMA,), "pairs": 1, "antithetic": False}
    return change(default, same | slots, "calls")


def preset_family(
    name: str, settings: DetectorSettings, model: DiffusionModel | None = None, size: tuple[int, ...] = ()
) -> Family:
    """A preset as a family of one point."""
    where = size if model is None else tuple(model.config.preprocess.size)
    return Family(name, {settings.nfe_for(where): settings})


def sample(
    model: DiffusionModel, split: Path, default: DetectorSettings, chosen: argparse.Namespace
) -> tuple[Normals, Labelled]:
    """Normals that fit the normal error, and what is measured on, of other groups."""
    samples = load_table(split)
    fitting, held = normal_parts(samples)
    if fitting is None:
        raise DataError(f"{split}: expected normals of the splits train and val, found one of them")
    config = model.config

    def read(table: Any, count: int) -> Normals:
        rows = drawn(table, count, chosen.seed)
        found = load_images(rows, model.preprocessor, config.preprocess.max_pixels, config.engine.workers, quiet=True)
        normals: Normals = part(found)
        return normals

    fit = read(fitting, chosen.normals)
    if "dev" in set(samples.table["split"]):
        return fit, read_labelled(model, split, chosen.subset, chosen.seed, "dev")
    return fit, planted(read(held, max(1, chosen.subset // 2)), fit, default, chosen.seed)


def planted(normals: Normals, fit: Normals, settings: DetectorSettings, seed: int) -> Labelled:
    """Each normal with one anomaly, the kinds in turn, and as it is; those in which nothing shows are only as they are.

    Raises:
        DataError: there is no normal in which an anomaly can be seen.
    """
    kinds = kinds_for(settings.polarity)
    images, masks, rows = [], [], []
    for number, kind in enumerate(kinds):
        mine = list(range(number, len(normals), len(kinds)))
        some = normals.take(mine)
        image, mask = plant(some.images, some.foreground, kind, seed, settings.polarity, fit.images)
        seen = mask.flatten(1).any(dim=1)
        images.append(image[seen])
        masks.append(mask[seen])
        rows += [row for row, shows in zip(mine, seen.tolist(), strict=True) if shows]
    if not rows:
        raise DataError("expected held-out normals in which an anomaly can be seen, found none")
    every = normals.take([*rows, *range(len(normals))])
    clean = normals.images.float()
    found = PlantedImages(
        torch.cat([*images, clean]),
        torch.cat([*masks, torch.zeros(len(clean), *clean.shape[2:], dtype=torch.bool)]),
        every.foreground,
        (LABELLED,) * len(every),
        every.groups,
    )
    return Labelled(found, np.arange(len(every)) < len(rows), has_masks=True)


def measure(
    model: DiffusionModel, family: Family, fit: Normals, labelled: Labelled, *, device: str, seed: int
) -> dict[str, Any]:
    """By number of calls pixel AP (within the foreground, if masks are known) and image AUROC, with 95 % intervals."""
    found: dict[str, Any] = {}
    cache = None
    for nfe, asked in family.points.items():
        settings = resolve(asked, model.config)[1]
        if cache is None or not family.cached:
            cache = ErrorCache(model, settings, fit, labelled.found, (settings.residual,), device=device, seed=seed)
            cache.compute(settings.noise, family.cached or settings.levels)
        found[str(nfe)] = point(cache, settings, labelled, seed)
    return found


def point(cache: ErrorCache, settings: DetectorSettings, labelled: Labelled, seed: int) -> dict[str, Any]:
    """One point: its metrics, and how many images and groups they are of."""
    choice = (settings.reduction, settings.topk)
    groups = labelled.found.groups
    scores = cache.scores(settings, [choice])[choice].numpy()
    found: dict[str, Any] = {"images": len(groups), "groups": len(set(groups))}
    found |= with_interval("image_auroc", ImagePool(labelled.labels, scores, groups), "auroc", seed)
    if labelled.has_masks:
        found |= with_interval("pixel_ap", pixel_pool(cache, settings, groups), "ap", seed)
    return found


def pixel_pool(cache: ErrorCache, settings: DetectorSettings, groups: tuple[str, ...]) -> Pool:
    """The measured pixels of all images."""
    values = np.split(cache.values(settings), cache.ends[:-1])
    labels = np.split(cache.labels, cache.ends[:-1])
    pairs = list(zip(values, labels, strict=True))
    return PixelPool([value[label] for value, label in pairs], [value[~label] for value, label in pairs], groups)


def with_interval(name: str, pool: Pool, metric: str, seed: int) -> dict[str, Any]:
    """A metric of a pool, and its bootstrap interval over groups."""
    return {name: pool.value(metric), f"{name}_ci95": bootstrap_intervals(pool, (metric,), seed=seed)[metric].as_list()}


if __name__ == "__main__":
    raise SystemExit(main())

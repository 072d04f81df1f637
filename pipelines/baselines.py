"""The baselines beside the model: fitted on training normals, measured on the same images, paired with it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anodiff.anomaly.baselines import Baseline, standard_baselines
from anodiff.anomaly.memory import FeatureMemory, encoder_features
from anodiff.engine.progress import Progress
from anodiff.engine.store import Item
from anodiff.errors import InputError
from anodiff.files import make_folder, save_map, write_csv, write_json
from anodiff.metrics import Pools, evaluate_pools, paired_bootstrap, pool_maps
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import table_text
from anodiff.pipelines.evaluate import truth_rows
from anodiff.pipelines.scoring import ScoreJob, mask_of, read_item
from anodiff.pipelines.truth import write_truth
from anodiff.training.images import ImageSet, load_images, split_normals

if TYPE_CHECKING:
    from anodiff.data.table import SampleTable
    from anodiff.metrics.evaluate import MapItem

CHUNK = 64
COMPARED = (("pixel", "auroc"), ("pixel", "ap"), ("pixel", "max_dice"), ("image", "auroc"), ("image", "ap"))
SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "oracle_max_dice")


@dataclass(frozen=True)
class Comparison:
    """metrics: by method, ours first; paired: by baseline, then metric, ours minus the baseline; fitted_on: facts.

    settings: by baseline, what it chose on normals and what is planted in them.
    """

    metrics: dict[str, dict[str, Any]]
    paired: dict[str, dict[str, Any]]
    fitted_on: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """For baselines.json."""
        return {
            "fitted_on": self.fitted_on,
            "settings": self.settings,
            "metrics": self.metrics,
            "paired": self.paired,
        }

    def text(self) -> str:
        """Two tables: every method's metrics, and ours against the best baseline of each metric."""
        rows = [[name, found.get("nfe", 0), *(found[key] for key in SHOWN)] for name, found in self.metrics.items()]
        ours = next(iter(self.metrics))
        differences = []
        for level, metric in COMPARED:
            key = f"{level}_{metric}"
            best = self.best(key)
            if best is None or self.paired[best][key]["difference"] is None:
                continue
            found = self.paired[best][key]
            low, high = found["ci95"] or (None, None)
            differences.append([key, best, found["difference"], low, high, found["p"]])
        return "\n".join(
            [
                table_text(["method", "NFE", *SHOWN], rows),
                "",
                f"{ours} minus the best baseline (paired bootstrap over {self.fitted_on['bootstrap_over']}):",
                table_text(["metric", "baseline", "difference", "95 % low", "high", "p"], differences),
            ]
        )

    def best(self, key: str) -> str | None:
        """The baseline that is best by a metric such as "pixel_ap"; None where it is undefined."""
        key = "oracle_max_dice" if key == "pixel_max_dice" else key
        found = {name: self.metrics[name][key] for name in self.paired if self.metrics[name][key] is not None}
        return max(found, key=lambda name: found[name]) if found else None


def compare(
    job: ScoreJob,
    model: DiffusionModel,
    samples: SampleTable,
    items: Sequence[Item],
    rows: Sequence[dict[str, Any]],
    pools: Pools,
    metrics: dict[str, Any],
    *,
    quiet: bool = False,
) -> Comparison:
    """Fits the baselines on the training normals of `samples` and measures them on the scored images."""
    normals = training_normals(model, samples, quiet)
    ours = f"anodiff {job.detector.name}"
    comparison = Comparison({ours: metrics}, {}, fitted_on(normals, pools), {})
    scored = {row["id"] for row in rows if row["status"] == "ok"}
    baselines = baselines_of(job, model)
    with Progress(len(baselines) * len(items), "maps", "baselines", quiet=quiet) as progress:
        for baseline in baselines:
            baseline.fit(normals.images, normals.groups, normals.foreground)
            comparison.settings[baseline.name] = baseline.settings()
            theirs = baseline_pools(baseline, job, items, scored, progress)
            found = evaluate_pools(theirs, pixel_threshold_fpr5=None)
            comparison.metrics[baseline.name] = found | {"nfe": baseline.nfe}
            comparison.paired[baseline.name] = {
                f"{level}_{metric}": paired_bootstrap(getattr(pools, f"{level}s"), getattr(theirs, f"{level}s"), metric)
                for level, metric in COMPARED
            }
    return comparison


def measure(
    job: ScoreJob, model: DiffusionModel, samples: SampleTable, items: Sequence[Item], *, quiet: bool = False
) -> dict[str, Any]:
    """The baselines alone, each in a folder of the job's that `anodiff compare` reads as any other run.

    Returns by baseline its folder's name, settings, metrics and seconds of fitting. An image that cannot be read is
    left out.
    """
    normals = training_normals(model, samples, quiet)
    usable = {item.id for item in items if readable(job, item)}
    found: dict[str, Any] = {}
    baselines = baselines_of(job, model)
    with Progress(len(baselines) * len(items), "maps", "baselines", quiet=quiet) as progress:
        for baseline in baselines:
            began = time.monotonic()
            baseline.fit(normals.images, normals.groups, normals.foreground)
            seconds = time.monotonic() - began
            folder = job.outputs.folder / re.sub("[^a-z0-9]+", "-", baseline.name.lower()).strip("-")
            pools = baseline_pools(baseline, job, items, usable, progress, folder)
            metrics = evaluate_pools(pools, pixel_threshold_fpr5=None) | {"nfe": baseline.nfe}
            write_json(folder / "metrics.json", metrics)
            found[baseline.name] = {
                "folder": folder.name, "settings": baseline.settings(), "metrics": metrics, "fit_seconds": seconds,
            }  # fmt: skip
    return found


def readable(job: ScoreJob, item: Item) -> bool:
    """Whether the image and its mask can be used."""
    try:
        job.read(item)
    except InputError:
        return False
    return True


def training_normals(model: DiffusionModel, samples: SampleTable, quiet: bool) -> ImageSet:
    """The normals that the model itself learns from."""
    config = model.config
    kept, _ = split_normals(samples, config.training.holdout, config.training.seed)
    return load_images(kept, model.preprocessor, config.preprocess.max_pixels, config.engine.workers, quiet)


def baselines_of(job: ScoreJob, model: DiffusionModel) -> list[Baseline]:
    """The trivial ones, and a feature memory on the model's own encoder where its network offers features.

    Polarity is declared, and limits of the detector are offered; all else each chooses for itself.
    """
    polarity = model.config.polarity
    found = standard_baselines(polarity, limits=job.detector.settings.limits)
    if hasattr(model.denoiser.network, "features") and model.config.engine.window is None:
        denoiser = job.detector.denoiser
        own = encoder_features(denoiser)
        name = "feature memory (own encoder)"
        found.append(FeatureMemory(own, polarity, name=name, nfe=1, device=denoiser.device))
    return found


def baseline_pools(
    baseline: Baseline,
    job: ScoreJob,
    items: Sequence[Item],
    scored: set[str],
    progress: Progress,
    folder: Path | None = None,
) -> Pools:
    """A baseline's maps and scores of the images that the model has scored, beside the same labels and masks.

    With ``folder`` they are written there too, as a run.
    """
    maps: list[MapItem] = []
    scores: list[float | None] = []
    if folder is not None:
        make_folder(folder / "maps")
    waiting = iter(items)
    while chunk := list(islice(waiting, CHUNK)):
        found = measured_by(baseline, job, [item for item in chunk if item.id in scored])
        for item in chunk:
            score, values, mask = found.get(item.id, (None, None, None))
            maps.append((item.id, values, mask))
            scores.append(score)
            if folder is not None and values is not None:
                save_map(folder / "maps" / f"{item.id}.npy", values)
        progress.update(len(chunk))
    if folder is not None:
        write_run(folder, items, scores)
    truths = [item.extra for item in items]
    return pool_maps(maps, [truth.label for truth in truths], scores, [truth.group for truth in truths])


def write_run(folder: Path, items: Sequence[Item], scores: Sequence[float | None]) -> None:
    """scores.csv and truth.csv; no map and no score of an image that was left out."""
    write_csv(
        folder / "scores.csv",
        ("id", "path", "score", "is_anomalous"),
        ({"id": item.id, "path": item.path, "score": score} for item, score in zip(items, scores, strict=True)),
    )
    status = ("ok" if score is not None else "failed" for score in scores)
    rows = [
        {"id": item.id, "status": each, "map": f"maps/{item.id}.npy" if each == "ok" else ""}
        for item, each in zip(items, status, strict=True)
    ]
    write_truth(folder, truth_rows(items, rows))


def measured_by(baseline: Baseline, job: ScoreJob, items: Sequence[Item]) -> dict[str, tuple[float, Any, Any]]:
    """id -> (score, map, mask) of a few images, maps and masks on the native grid."""
    if not items:
        return {}
    prepared = [job.preprocessor(read_item(item, job.config.max_pixels)) for item in items]
    inside = torch.stack([each.foreground for each in prepared])
    maps = baseline.maps(torch.stack([each.image for each in prepared]), inside)
    scores = baseline.scores(maps, inside)
    return {
        item.id: (
            float(score),
            job.preprocessor.back(values, each.geometry),
            mask_of(item, each.geometry.native, job.config.max_pixels),
        )
        for item, each, values, score in zip(items, prepared, maps, scores, strict=True)
    }


def fitted_on(normals: ImageSet, pools: Pools) -> dict[str, Any]:
    """What the comparison rests on."""
    return {
        "normals": len(normals),
        "groups": len(set(normals.groups)),
        "bootstrap_over": f"{len(pools.images.groups)} groups",
    }

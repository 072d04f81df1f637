"""The oracle of a tuning: the best of the same grid by the labels of the very images that it is then reported on.

What no honest method may do, and named ``oracle_`` wherever it stands. It tells how much `anodiff tune`, which sees
normals only, leaves on the table: same levels, families, residuals and slots, same search, same budget of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly import resolve
from anodiff.anomaly.planted import PlantedImages
from anodiff.anomaly.reduce import Reduction, reduce_maps
from anodiff.anomaly.tuning import LEVELS, climb, level_grid
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.anomaly.tuning_grid import FROM_DIFFERENCE, REDUCTIONS
from anodiff.anomaly.tuning_measure import Measure, Values
from anodiff.anomaly.tuning_noise import TrainedNoise, families
from anodiff.anomaly.tuning_search import Search, with_slots
from anodiff.data.layouts import load_table
from anodiff.data.preprocess import Geometry
from anodiff.data.readers import read_image
from anodiff.data.table import select
from anodiff.errors import InputError
from anodiff.files import write_json
from anodiff.metrics.ranking import auroc
from anodiff.model import DiffusionModel
from anodiff.pipelines.calibrate import OPEN_KEYS
from anodiff.pipelines.calibration_normals import read_normals
from anodiff.pipelines.common import drawn, open_model
from anodiff.pipelines.scoring import items_of_table, mask_of, resized_mask
from anodiff.pipelines.tune import adopt, part

#: the one "kind" of anomaly of labelled images
LABELLED = "labelled"


@dataclass(frozen=True)
class Labelled:
    """found: images with their masks on the model's grid (all of kind LABELLED); labels (N,); whether masks exist."""

    found: PlantedImages
    labels: NDArray[np.bool_]
    has_masks: bool


class ImageMeasure(Measure):
    """The AUROC of image scores in the place of the pixel AP, for sets without masks."""

    def __init__(self, cache: ErrorCache, labels: NDArray[np.bool_], reduction: Reduction, topk: float) -> None:
        super().__init__(cache, [LABELLED], seed=0, sizes=1)
        self._labels, self._reduction, self._topk = labels, reduction, topk

    def pixel_ap(self, values: Values) -> dict[str, float]:
        """AUROC of the scores of map values at the measured pixels (P,)."""
        images = np.split(values, self.cache.ends[:-1])
        scores = [
            float(reduce_maps(torch.from_numpy(image)[None], self._reduction, topk=self._topk)[0]) for image in images
        ]
        return {LABELLED: auroc(self._labels, scores) or 0.0}


def run(
    model_path: Path,
    data: Path,
    output: Path,
    *,
    preset: str,
    preset_name: str,
    nfe: int,
    images: int,
    fit_images: int,
    device: str = "auto",
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> None:
    """Chooses on the test images of ``data`` (at most ``images``), calibrates on its normals, writes a new model.

    The maps by pixel AP, or by the AUROC of image scores where there are no masks; then the reduction by that AUROC.
    What was chosen, and on how many images, is written beside it.
    """
    model = open_model(model_path, overrides, OPEN_KEYS)
    normals = read_normals(
        model, data, layout="auto", normal="", group_by="", allow_trained=False, seed=seed, quiet=quiet
    )
    known = read_labelled(model, data, images, seed)
    present = resolve(preset, model.config)[1]
    fit = part((normals.deciding if normals.fitting is None else normals.fitting).sample(fit_images, seed))
    grid = level_grid(present.levels, LEVELS)
    residuals = tuple(dict.fromkeys([present.residual, *FROM_DIFFERENCE]))
    cache = ErrorCache(model, present, fit, known.found, residuals, device=device, seed=seed, quiet=quiet)
    measure: Measure = Measure(cache, [LABELLED], seed, sizes=1)
    if not known.has_masks:
        measure = ImageMeasure(cache, known.labels, present.reduction, present.topk)
    search = Search(measure, nfe)
    cache.compute(present.noise, grid)
    others = families(None, preset, present, TrainedNoise.of(model))
    best = climb(search, search.within_budget(present), others, grid, quiet)
    scores = cache.scores(best, list(dict.fromkeys([(best.reduction, best.topk), *REDUCTIONS])))
    reduction, topk = max(scores, key=lambda choice: auroc(known.labels, scores[choice].numpy()) or 0.0)
    chosen = with_slots(best, {"reduction": reduction, "topk": topk})
    adopt(model, preset, preset_name, chosen, normals, device=device, seed=seed, quiet=quiet)
    model.save(output)
    measured = "pixel AP" if known.has_masks else "image AUROC"
    shown = {"oracle_choice": chosen.to_json(), "by": measured, "value": measure.value(best)}
    write_json(output.with_suffix(".oracle.json"), shown | {"images": len(known.found)})


def read_labelled(model: DiffusionModel, data: Path, most: int, seed: int, split: str = "test") -> Labelled:
    """The images of a split, at most so many drawn at random, prepared as the model's; unreadable ones are left out.

    An anomalous image without a mask, or with an empty one, is left out where others have masks.
    """
    config = model.config.preprocess
    items = items_of_table(drawn(select(load_table(data), split), most, seed))
    has_masks = any(item.extra.mask for item in items)
    pictures, masks, inside, groups, labels = [], [], [], [], []
    for item in items:
        truth = item.extra
        try:
            prepared = model.preprocessor(read_image(item.path, max_pixels=config.max_pixels))
            mask = mask_of(item, prepared.geometry.native, config.max_pixels)
        except InputError:
            continue
        if has_masks and mask is None and truth.label == 1:
            continue
        pictures.append(prepared.image)
        masks.append(on_model_grid(mask, prepared.geometry))
        inside.append(prepared.foreground)
        groups.append(truth.group or item.path)
        labels.append(truth.label == 1)
    found = PlantedImages(
        torch.stack(pictures), torch.stack(masks), torch.stack(inside), (LABELLED,) * len(labels), tuple(groups)
    )
    return Labelled(found, np.array(labels), has_masks)


def on_model_grid(mask: NDArray[np.bool_] | None, geometry: Geometry) -> Tensor:
    """A native mask on the model's grid, by the nearest pixel; nothing is marked in the padding, or without a mask."""
    found = torch.zeros(geometry.model, dtype=torch.bool)
    if mask is not None:
        top, left, height, width = geometry.box
        nearest = resized_mask(mask, (height, width)).copy()
        found[top : top + height, left : left + width] = torch.from_numpy(nearest)
    return found

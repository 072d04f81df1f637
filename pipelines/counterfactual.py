"""anodiff edit --class: what images would look like in another class, and where that changes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anodiff.data.preprocess import select_channels
from anodiff.data.readers import RawImage
from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.errors import ConfigError
from anodiff.files import make_folder
from anodiff.pipelines.common import Common, open_model
from anodiff.pipelines.restoring import Done, RestoringJob, run_restoring
from anodiff.pipelines.restoring_masks import mask_settings, mask_source
from anodiff.pipelines.restoring_options import OPEN_KEYS
from anodiff.pipelines.restoring_run import computing
from anodiff.restoration import Restored, Restorer
from anodiff.restoration.batches import Batch
from anodiff.restoration.counterfactual import GUIDANCE, STARTS, check
from anodiff.restoration.output import write_array
from anodiff.visualize.heatmap import HeatScale, display_image, save_heatmap

COLUMNS = ("difference",)
#: the one colour scale: absolute difference in the model's range, whose width is 2; a quarter stands in the middle
SCALE = HeatScale(0.0, 0.25, 1.0, calibrated=False)


@dataclass(frozen=True)
class Target:
    """What is asked for: the class, the weight of its guidance, the class the images are of, how they are noised."""

    label: str
    guidance: float | None = None
    source: str | None = None
    start: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `Restorer.counterfactual`, defaults filled in."""
        guidance = GUIDANCE if self.guidance is None else self.guidance
        return {"source": self.source, "guidance": guidance, "start": self.start or STARTS[0]}


class CounterfactualJob(RestoringJob):
    """A restoring job that also writes the difference: maps/<id>.npy, heatmaps/<id>.png and a column."""

    def write(self, item: Item, computed: Done) -> dict[str, Any]:
        """The row of the image with its difference.

        Both sides of it have been through the model's grid, so that what resizing loses is no part of it.
        """
        row = super().write(item, computed)
        loaded, geometry = computed.loaded, computed.loaded.prepared.geometry
        seen, made = loaded.prepared.image, computed.image
        sides = [loaded.intensity.back(self.preprocessor.back(each, geometry)) for each in (seen, made)]
        change = self.preprocessor.back((seen - made).abs().mean(0), geometry)
        difference = sides[0] - sides[1]
        if loaded.mask is not None:
            difference, change = difference * loaded.mask[:, :, None], change * loaded.mask
        files = {"map": f"maps/{item.id}.npy", "heatmap": f"heatmaps/{item.id}.png"}
        write_array(self.folder, files["map"], difference)
        make_folder(self.folder / "heatmaps")
        save_heatmap(self.folder / files["heatmap"], self._shown(loaded.raw), change, SCALE)
        inside = loaded.prepared.foreground
        mean = float((seen - made).abs().mean(0)[inside].mean()) if bool(inside.any()) else 0.0
        return {**row, **files, "difference": mean, "files": [*row["files"], *files.values()]}

    def pictures(
        self, item: Item, row: Mapping[str, Any]
    ) -> Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
        """Input and result, and the heatmap beside them."""
        pair = super().pictures(item, row)

        def read() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
            with Image.open(self.folder / row["heatmap"]) as picture:
                return *pair(), np.asarray(picture)

        return read

    def _shown(self, raw: RawImage) -> NDArray[np.uint8]:
        """The image as the report shows it."""
        pixels = select_channels(raw, self.config.channels, self.config.channel)
        whole = self.config.intensity.kind == "unit_range"
        return display_image(pixels, raw.low, raw.high) if whole else display_image(pixels)


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    target: Target,
    *,
    sigma: float | None,
    strength: float | None,
    mask: Path | None,
    box: str | None,
    steps: int,
    sampler: str | None,
    npy: bool,
    common: Common,
) -> Summary:
    """Counterfactuals of `inputs`; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    model = open_model(model_path, common.overrides, OPEN_KEYS)
    source = mask_source(mask, box, model.config.preprocess.max_pixels)
    restorer = Restorer(model, steps=steps, sampler=sampler, **computing(model, common))
    check(restorer, target.label, restorer.edit_level(sigma, strength), **target.options)

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        found = restorer.counterfactual(
            batch.images, target.label, sigma, mask=batch.masks, strength=strength, **target.options
        )
        return Restored(found.images, found.nfe), None

    return run_restoring(
        CounterfactualJob(model, task, output, mask_of=source, npy=npy),
        model_path,
        model,
        restorer,
        inputs,
        {"class": target.label, **target.options, "sigma": sigma, "strength": strength, **mask_settings(mask, box)},
        name="edit",
        common=common,
        columns=COLUMNS,
    )


def refuse_alone(target: Target) -> None:
    """Raises ConfigError for what belongs to a class where none is named."""
    given = {"--guidance": target.guidance, "--from-class": target.source, "--start": target.start}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"edit: expected --class with {option}, found {value} alone")

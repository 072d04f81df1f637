"""What denoise, inpaint, restore and edit share: images in, images of the same grid and values out, a table, a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.preprocess import Geometry, Prepared, Preprocessor, resize, select_channels
from anodiff.data.readers import RawImage, read_image
from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.errors import ConfigError, InputError
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import Common
from anodiff.pipelines.restoring_masks import MaskSource, model_mask
from anodiff.pipelines.restoring_notes import (
    EMPTY_FOUND,
    EMPTY_GIVEN,
    LOST_COLUMNS,
    lost_columns,
)
from anodiff.pipelines.restoring_run import Closing, chain_settings, run_items, said_after
from anodiff.pipelines.sizes import by_size
from anodiff.restoration import Restorer
from anodiff.restoration.batches import Batch, Task
from anodiff.restoration.intensity import Intensity, background_of, intensity_of, noise_left, without
from anodiff.restoration.lost import Lost, lost_of
from anodiff.restoration.output import as_measured, like_file, read_values, write_array, write_image, write_png
from anodiff.visualize.heatmap import display_image

#: the longer side of a picture in the report, before it is shrunk for the page
SHOWN_PX = 1024


@dataclass(frozen=True)
class Loaded:
    """One image, read; mask: bool (H, W) on its own grid, None where the whole image may change.

    lost: what of it the model does not see.
    """

    raw: RawImage
    prepared: Prepared
    intensity: Intensity
    mask: NDArray[np.bool_] | None
    lost: Lost


@dataclass(frozen=True)
class Done:
    """One image, restored: image and uncertainty (C, h, w), found mask (h, w), all on the model's grid.

    sigma_file: the level in the file's values, None where they have none. kept: nothing of it was to change.
    """

    loaded: Loaded
    image: Tensor
    uncertainty: Tensor | None
    found_mask: Tensor | None
    sigma: float | None
    sigma_from: str | None
    nfe: int
    seconds: float
    sigma_file: float | None = None
    kept: bool = False


class RestoringJob:
    """read -> Loaded, compute -> Done, write -> the row of results.csv; see `anodiff.engine.loop.Job`.

    factor: how much finer the results' grid is than that of the inputs. same_size: refuse files of another size than
    the model's. refuse: raises InputError for other files that the task is not for. any_size: a model that resizes
    nothing takes files of every size. keep_outside: pixels outside the mask are written as they were read, and
    a finer result has the averages that were read, unless the file was resized. blind: what an image holds inside its
    mask decides nothing of the result, its intensities and foreground included.
    """

    def __init__(
        self,
        model: DiffusionModel,
        task: Task,
        folder: Path,
        *,
        mask_of: MaskSource | None = None,
        npy: bool = False,
        factor: int = 1,
        same_size: bool = False,
        refuse: Callable[[RawImage], None] | None = None,
        any_size: bool = True,
        keep_outside: bool = True,
        blind: bool = False,
    ) -> None:
        volume = model.config.volume
        if model.config.video is not None or (volume is not None and (volume.mode == "patches" or volume.neighbours)):
            raise ConfigError(
                f"expected a model of images, which is all that this job takes, found one of "
                f"{'volumes' if volume is not None else 'clips'}"
            )
        config = model.config.preprocess
        height, width = config.size
        if config.resize != "none" and (height % factor or width % factor):
            raise ConfigError(f"superres: expected a factor that divides {width}x{height}, found {factor}")
        self.config = config.model_copy(update={"size": (height // factor, width // factor)})
        self.preprocessor = Preprocessor(self.config, any_size=any_size)
        self.task, self.folder, self.mask_of, self.npy = task, folder, mask_of, npy
        self.factor, self.same_size, self.keep_outside, self.blind = factor, same_size, keep_outside, blind
        self.refuse = refuse

    def read(self, item: Item) -> Loaded:
        """One image from disk, with its mask; InputError where either cannot be used."""
        raw = read_image(item.path, max_pixels=self.config.max_pixels)
        shape = (raw.pixels.shape[0], raw.pixels.shape[1])
        mask = None if self.mask_of is None else self.mask_of(item, shape)
        if mask is not None and self.blind:
            raw = without(raw, mask)
        raw = self.preprocessor.ranged(raw)
        if self.refuse is not None:
            self.refuse(raw)
        prepared = self.preprocessor(raw)
        native = prepared.geometry.native
        if self.same_size and native != prepared.geometry.model:
            height, width = prepared.geometry.model
            raise InputError(
                f"{item.path}: expected {width}x{height} pixels, those of the model, since what is lost lies on the "
                f"file's own grid; found {native[1]}x{native[0]}"
            )
        intensity = intensity_of(raw, self.preprocessor)
        return Loaded(raw, prepared, intensity, mask, lost_of(raw, prepared, intensity, self.preprocessor))

    def compute(self, batch: list[Loaded]) -> Sequence[Done]:
        """Runs the task over a batch on the device, images of one size at a time, those with empty masks not at all."""
        done = iter(by_size([loaded for loaded in batch if not self._kept(loaded)], self._compute))
        return [
            Done(loaded, loaded.prepared.image, None, None, None, None, 0, 0.0, kept=True)
            if self._kept(loaded)
            else next(done)
            for loaded in batch
        ]

    def _kept(self, loaded: Loaded) -> bool:
        """Whether nothing of an image may change."""
        return self.keep_outside and loaded.mask is not None and not loaded.mask.any()

    def _compute(self, batch: list[Loaded]) -> Sequence[Done]:
        began = time.monotonic()
        masks = None
        if self.mask_of is not None:
            masks = torch.stack([model_mask(loaded.mask, loaded.prepared.geometry) for loaded in batch])
        prepared = [loaded.prepared for loaded in batch]
        restored, found = self.task(
            Batch(
                torch.stack([each.image for each in prepared]),
                torch.stack([each.foreground for each in prepared]),
                masks,
                [loaded.intensity for loaded in batch],
                lambda: torch.stack([torch.from_numpy(background_of(each.raw, self.preprocessor)) for each in batch]),
                lambda: torch.tensor([noise_left(each.geometry) for each in prepared]),
            )
        )
        seconds = (time.monotonic() - began) / len(batch)
        return [
            Done(
                loaded=loaded,
                image=restored.images[i],
                uncertainty=None if restored.uncertainty is None else restored.uncertainty[i],
                found_mask=None if found is None else found[i],
                sigma=None if restored.sigma is None else float(restored.sigma[i]),
                sigma_from=None if restored.sigma_from is None else restored.sigma_from[i],
                nfe=restored.nfe,
                seconds=seconds,
                sigma_file=(
                    None
                    if restored.sigma is None or restored.counts
                    else loaded.intensity.level_back(float(restored.sigma[i]))
                ),
            )
            for i, loaded in enumerate(batch)
        ]

    def write(self, item: Item, computed: Done) -> dict[str, Any]:
        """Writes the image, and what was asked for beside it; returns its row."""
        loaded = computed.loaded
        geometry = _finer(loaded.prepared.geometry, self.factor)
        pixels = loaded.intensity.back(self.preprocessor.back(computed.image, geometry))
        files: dict[str, str] = {}
        mask = loaded.mask
        if computed.found_mask is not None:
            mask = self.preprocessor.back(computed.found_mask.float(), geometry) >= 0.5
            files["mask"] = f"masks/{item.id}.png"
            write_png(self.folder / files["mask"], mask.astype(np.uint8) * 255)
        kept = select_channels(loaded.raw, self.config.channels, self.config.channel)
        if mask is not None and self.keep_outside:
            pixels = np.where(mask[:, :, None], pixels, kept)
        resized = loaded.prepared.geometry.native != loaded.prepared.geometry.box[2:]
        if self.factor > 1 and self.keep_outside and not resized:
            pixels = as_measured(pixels, kept, self.factor, loaded.raw.dtype)
        files["image"] = write_image(self.folder, item.id, like_file(pixels, loaded.raw), loaded.raw.dtype)
        if self.npy:
            files["array"] = write_array(self.folder, f"arrays/{item.id}.npy", pixels)
        if computed.uncertainty is not None:
            native = (self.preprocessor.back(each, geometry) for each in (computed.uncertainty, computed.image))
            spread = loaded.intensity.spread_back(*native)
            files["uncertainty"] = write_array(self.folder, f"uncertainty/{item.id}.npy", spread)
        nothing_found = computed.found_mask is not None and mask is not None and not mask.any()
        row = {
            "nfe": computed.nfe,
            "sigma": computed.sigma,
            "sigma_file": computed.sigma_file,
            "sigma_from": computed.sigma_from,
            "seconds": computed.seconds,
            "remark": EMPTY_GIVEN if computed.kept else EMPTY_FOUND if nothing_found else None,
            **lost_columns(loaded.lost),
        }
        return {**row, "files": list(files.values()), **files}

    def pictures(self, item: Item, row: Mapping[str, Any]) -> Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Input and result of a row in one window, read when they are shown."""

        def read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            raw = self.preprocessor.ranged(read_image(item.path, max_pixels=self.config.max_pixels))
            before = select_channels(raw, self.config.channels, self.config.channel)
            after = read_values(self.folder / row["image"])
            whole = self.config.intensity.kind == "unit_range"
            # a hole may hold anything
            low, high = (raw.low, raw.high) if whole else np.percentile(after if self.blind else before, (0.5, 99.5))
            shown = [display_image(_small(each), float(low), float(high)) for each in (before, after)]
            return shown[0], shown[1]

        return read

    def hole(self, item: Item, row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """bool (H, W) of what of a row could change, None where all could."""
        if "mask" in row:
            return np.asarray(read_values(self.folder / row["mask"])[:, :, 0] > 0)
        if self.mask_of is None or self.same_size:  # an operator's own mask: slices, all over the picture
            return None
        raw = read_image(item.path, max_pixels=self.config.max_pixels)
        return self.mask_of(item, (raw.pixels.shape[0], raw.pixels.shape[1]))


def run_restoring(
    job: RestoringJob,
    model_path: Path,
    model: DiffusionModel,
    restorer: Restorer,
    paths: Sequence[str],
    settings: Mapping[str, Any],
    *,
    name: str,
    common: Common,
    columns: Sequence[str] = (),
    closing: Closing | None = None,
) -> Summary:
    """Runs the job over the inputs: OUTPUT/images/, results.csv and report.html; the same command resumes it.

    settings: everything of the task that decides what is written. columns: of results.csv, beside COLUMNS. closing: see
    `run_items`.
    """
    from anodiff.pipelines.score import images_of
    from anodiff.pipelines.scoring import items_of_paths

    items = items_of_paths(images_of(paths, job.folder, common.quiet))
    settings = {**settings, **chain_settings(model_path, model, restorer), "npy": job.npy}
    masked = job.keep_outside and (job.mask_of is not None or "where_anomalous" in settings)
    return run_items(
        job,
        items,
        restorer,
        job.folder,
        settings,
        name=name,
        common=common,
        workers=model.config.engine.workers,
        columns=(*columns, *LOST_COLUMNS),
        pictures=job.pictures,
        hole=job.hole,
        closing=partial(said_after, closing, "images", masked, common.quiet),
    )


def _finer(geometry: Geometry, factor: int) -> Geometry:
    top, left, height, width = (side * factor for side in geometry.box)
    native, model = geometry.native, geometry.model
    return replace(
        geometry,
        native=(native[0] * factor, native[1] * factor),
        model=(model[0] * factor, model[1] * factor),
        box=(top, left, height, width),
    )


def _small(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = pixels.shape[:2]
    shrink = min(1.0, SHOWN_PX / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return np.stack([resize(plane, size) for plane in np.moveaxis(pixels, 2, 0)], axis=2)

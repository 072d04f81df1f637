"""The scoring job of `anodiff score` and `anodiff evaluate`: what is read, computed and written for one image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly import AnomalyDetector
from anodiff.data.foreground import with_given
from anodiff.data.preprocess import Prepared, resize
from anodiff.data.readers import MAX_PIXELS, NONZERO_MARK, RawImage, file_of, read_image, read_mask
from anodiff.data.seen import pixel_hash
from anodiff.engine.device import describe
from anodiff.engine.loop import Summary, run_job
from anodiff.engine.progress import Progress
from anodiff.engine.store import STATE_FOLDER, Item, ResultStore
from anodiff.errors import InputError
from anodiff.files import atomic_write, load_map, make_folder, save_map
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import IMAGES_AT_ONCE, file_digest, say
from anodiff.pipelines.heatmaps import NOT_DRAWN, add_heatmaps, with_heatmaps
from anodiff.pipelines.pictures import (
    calibrated_scale,
    display_geometry,
    display_input,
    display_reconstruction,
    map_spread,
)
from anodiff.pipelines.sizes import by_size
from anodiff.visualize.heatmap import save_heatmap
from anodiff.visualize.png import png_bytes

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration
    from anodiff.data.table import SampleTable

COLUMNS = ("id", "path", "score", "p_value", "is_anomalous", "threshold", "nfe", "status", "error")
#: names, among the counts of a calibration on images, of normals with a foreground of each kind, where any was given
GIVEN_COUNT, ESTIMATED_COUNT = "given_foregrounds", "estimated_foregrounds"
RECONSTRUCTIONS = f"{STATE_FOLDER}/reconstructions"


@dataclass(frozen=True)
class Truth:
    """What is known of an input: label (0 normal, 1 anomalous, None), path of its mask ("" = none), group.

    foreground: path of its given foreground, "" where that is estimated.
    """

    label: int | None = None
    mask: str = ""
    group: str = ""
    foreground: str = ""


@dataclass(frozen=True)
class ImageItem(Item):
    """An input that is an image."""

    @property
    def stamp(self) -> str:
        """Changes when the file or that of its given foreground does; empty where one cannot be looked at."""
        own = super().stamp
        if not own or not self.extra.foreground:
            return own
        other = Item("", self.extra.foreground, file=file_of(self.extra.foreground.removesuffix(NONZERO_MARK))).stamp
        return other and f"{own}:{other}:{self.extra.foreground}"


@dataclass(frozen=True)
class Outputs:
    """What is written for each image, and where."""

    folder: Path
    map_format: str = "npy"
    maps: bool = True
    heatmaps: bool = True


@dataclass(frozen=True)
class Loaded:
    """One image, read: prepared for the model, and shown (uint8, display grid) with its mask (bool, native).

    trained_on: whether the model has learnt from it; None where that is not known.
    """

    prepared: Prepared
    shown: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    trained_on: bool | None = None


@dataclass(frozen=True)
class Scored:
    """One image, scored: map (h, w) and reconstruction (C, h, w) on the model's grid.

    calls: of the denoiser. left_early: whether the first level alone decided; None without early exit.
    """

    loaded: Loaded
    map: Tensor
    reconstruction: Tensor
    score: float
    p_value: float | None
    is_anomalous: bool | None
    seconds: float
    calls: int
    left_early: bool | None = None


class ScoreJob:
    """read -> Loaded, compute -> Scored, write -> the row of scores.csv; see `anodiff.engine.loop.Job`."""

    def __init__(self, model: DiffusionModel, detector: AnomalyDetector, outputs: Outputs) -> None:
        self.config = model.config.preprocess
        self.preprocessor, self.seen = model.scorable, model.seen
        self.detector = detector
        self.outputs = outputs
        self.foreground = model.config.preprocess.foreground
        self.scale = calibrated_scale(detector.calibration)
        self.nfe = detector.settings.nfe_for(self.config.size)

    def read(self, item: Item) -> Loaded:
        """One image from disk, with its mask where one is named; InputError where either cannot be used."""
        raw = self.preprocessor.ranged(read_item(item, self.config.max_pixels))
        prepared = self.preprocessor(raw)
        mask = mask_of(item, prepared.geometry.native, self.config.max_pixels)
        if mask is not None and item.extra.label == 0 and mask.any():
            raise InputError(
                f"{item.path}: expected no marked pixel in the mask of an image labelled normal, "
                f"found {int(mask.sum())} in {item.extra.mask}"
            )
        trained_on = None if self.seen is None else self.seen.contains(pixel_hash(raw))
        return Loaded(prepared, display_input(raw, prepared.geometry, self.config), mask, trained_on)

    def show(self, item: Item) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """The shown image and the mask of `read`, without what only the model needs."""
        raw = self.preprocessor.ranged(read_item(item, self.config.max_pixels))
        geometry = self.preprocessor.geometry((raw.pixels.shape[0], raw.pixels.shape[1]), str(raw.path))
        mask = mask_of(item, geometry.native, self.config.max_pixels)
        return display_input(raw, geometry, self.config), mask

    def compute(self, batch: list[Loaded]) -> Sequence[Scored]:
        """Scores a batch on the device, images of one size at a time."""
        return by_size(batch, self._compute)

    def _compute(self, batch: list[Loaded]) -> Sequence[Scored]:
        began = time.monotonic()
        result = self.detector(
            torch.stack([loaded.prepared.image for loaded in batch]),
            torch.stack([loaded.prepared.foreground for loaded in batch]),
        )
        seconds = (time.monotonic() - began) / len(batch)
        calibrated = self.detector.calibration is not None
        left, calls = result.left_early, result.calls
        return [
            Scored(
                loaded=loaded,
                map=result.maps[i],
                reconstruction=result.reconstructions[i],
                score=short_float(result.scores[i]),
                p_value=float(result.p_values[i]) if calibrated else None,
                is_anomalous=None if result.is_anomalous is None else bool(result.is_anomalous[i]),
                seconds=seconds,
                calls=result.nfe if calls is None else int(calls[i]),
                left_early=None if left is None else bool(left[i]),
            )
            for i, loaded in enumerate(batch)
        ]

    def write(self, item: Item, computed: Scored) -> dict[str, Any]:
        """Writes map, heatmap and reconstruction of one image; returns its row."""
        if not np.isfinite(computed.score):
            raise InputError(
                f"{item.path}: expected a finite score, found {computed.score}; its intensities may overflow"
            )
        prepared = computed.loaded.prepared
        files: dict[str, str] = {"reconstruction": f"{RECONSTRUCTIONS}/{item.id}.png"}
        picture = display_reconstruction(computed.reconstruction, prepared, self.config)
        save_png(self.outputs.folder / files["reconstruction"], picture)
        native = self.preprocessor.back(computed.map, prepared.geometry)
        if self.outputs.maps:
            files["map"] = f"maps/{item.id}.{self.outputs.map_format}"
            save_map(self.outputs.folder / files["map"], native)
        if self.outputs.heatmaps and self.scale is not None:
            files["heatmap"] = f"heatmaps/{item.id}.png"
            values = self.preprocessor.back(computed.map, display_geometry(prepared.geometry))
            self.draw(self.outputs.folder / files["heatmap"], computed.loaded, values)
        threshold = None if self.detector.calibration is None else self.detector.calibration.threshold
        return {
            "score": computed.score,
            "p_value": computed.p_value,
            "is_anomalous": computed.is_anomalous,
            "threshold": None if threshold is None else short_float(threshold),
            "nfe": computed.calls,
            "left_early": computed.left_early,
            "seconds": computed.seconds,
            "map_spread": map_spread(native) if self.scale is None else None,  # what makes the scale of a raw run
            "trained_on": computed.loaded.trained_on,
            "files": list(files.values()),
            **files,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this run, one sentence each."""
        kept = self.outputs.maps or self.detector.calibration is not None or not self.outputs.heatmaps
        return self.detector.notes if kept else (*self.detector.notes, NOT_DRAWN)

    def draw(self, path: Path, loaded: Loaded, values: NDArray[np.float32]) -> None:
        """Writes the heatmap of an image; ``values`` (h, w) on the display grid."""
        mask = None if loaded.mask is None else resized_mask(loaded.mask, values.shape)
        assert self.scale is not None
        save_heatmap(path, loaded.shown, values, self.scale, mask)

    def shown_map(self, row: dict[str, Any], grid: tuple[int, ...]) -> NDArray[np.float32]:
        """The stored map of a row on the display grid."""
        values = load_map(self.outputs.folder / row["map"])
        return values if values.shape == grid else resize(values, (grid[0], grid[1]))


def score_items(
    job: ScoreJob,
    items: Sequence[Item],
    store: ResultStore,
    *,
    batch_size: int | None,
    workers: int,
    quiet: bool = False,
) -> Summary:
    """Runs the job over the items, then draws the heatmaps of a run without calibration, and writes scores.csv.

    batch_size: None stands for IMAGES_AT_ONCE, and for 1 where the network sees windows: images may be large then, and
    one has windows for many batches.
    """
    large = job.detector.window_settings is not None
    at_once = batch_size or (1 if large else IMAGES_AT_ONCE)
    drawn = job.outputs.heatmaps and (job.outputs.maps or job.scale is not None)
    for name in (RECONSTRUCTIONS, *["maps"] * job.outputs.maps, *["heatmaps"] * drawn):
        make_folder(job.outputs.folder / name)
    said = len(job.detector.denoiser.notes)
    with Progress(len(items), "images", "scoring", quiet=quiet) as progress:
        summary = run_job(
            job, items, store, workers=workers, batch_size=at_once, ahead=at_once if large else None, progress=progress
        )
    say(f"ran on {job.detector.denoiser.sentence}", quiet)
    for note in job.detector.denoiser.notes[said:]:
        say(f"note: {note}", quiet)
    if not summary.interrupted and job.detector.calibration is None:
        drawing = add_heatmaps(job, items, store, workers=workers, quiet=quiet)
        summary = summary if drawing is None else with_heatmaps(summary, drawing, store)
    store.export_csv(job.outputs.folder / "scores.csv", COLUMNS, items)
    return summary


def run_settings(
    model_path: Path, model: DiffusionModel, detector: AnomalyDetector, outputs: Outputs
) -> dict[str, Any]:
    """Everything that decides what a run writes, flat: a run is resumed only where all of it is the same."""
    settings = {
        "model": file_digest(model_path),
        "preset": detector.name,
        "seed": detector.seed,
        "device": detector.denoiser.device.type,
        "precision": detector.denoiser.precision,
        "network_batch": detector.denoiser.network_batch,
        "compiled": detector.denoiser.compiled,
        "map_format": outputs.map_format if outputs.maps else None,
        "heatmaps": outputs.heatmaps,
    }
    if detector.window_settings is not None:
        settings |= detector.window_settings
    if detector.early_exit is not None:
        settings["early_exit"] = detector.early_exit.error
    settings |= {f"preprocess.{key}": value for key, value in model.config.preprocess.model_dump(mode="json").items()}
    return settings | {f"detector.{key}": value for key, value in detector.settings.to_json().items()}


def items_of_paths(paths: Sequence[str], foregrounds: Mapping[str, str] | None = None) -> list[Item]:
    """Inputs of which nothing is known but, of some, a given foreground."""
    from anodiff.data.table import make_ids

    beside = foregrounds or {}
    return [
        ImageItem(id_, path, Truth(foreground=beside.get(path, "")), file=file_of(path))
        for id_, path in zip(make_ids(paths), paths, strict=True)
    ]


def read_item(item: Item, max_pixels: int = MAX_PIXELS) -> RawImage:
    """The image of an item with its given foreground. Raises InputError where either cannot be used."""
    raw = read_image(item.path, max_pixels=max_pixels)
    return with_given(raw, item.extra.foreground, max_pixels=max_pixels)


def foreground_notes(items: Sequence[Item], estimated: str, calibration: Calibration | None = None) -> tuple[str, ...]:
    """Sentences on which inputs have a given foreground, where any has or the calibration's normals had.

    estimated: how it is found of the others, as the recipe says.
    """
    given = [item for item in items if item.extra.foreground]
    notes = []
    if given:
        others = "" if len(given) == len(items) or estimated == "given" else f", of the others it is {estimated}"
        notes.append(
            f"the foreground of {len(given)} of {len(items)} inputs is given (that of {given[0].path}: "
            f"{given[0].extra.foreground}){others}"
        )
    if calibration is not None and not calibration.counts.get(ESTIMATED_COUNT):
        normals = bool(calibration.counts.get(GIVEN_COUNT))
        unlike = [item for item in items if bool(item.extra.foreground) != normals]
        if unlike:
            this, theirs = ("estimated", "given") if normals else ("given", "estimated")
            notes.append(
                f"the foreground of {len(unlike)} of {len(items)} inputs is {this}, {unlike[0].path} first, where "
                f"those of the calibration's normals were {theirs}: p-values and decisions on them are only about right"
            )
    return tuple(notes)


def items_of_table(samples: SampleTable) -> list[Item]:
    """Inputs with what the sample table knows of them."""
    import pandas as pd

    rows = samples.table.to_dict("records")
    return [
        ImageItem(
            str(row["id"]),
            str(row["path"]),
            Truth(
                None if pd.isna(row["label"]) else int(row["label"]),
                str(row["mask"]),
                str(row["group"]),
                str(row["foreground"]),
            ),
            file=file_of(str(row["path"])),
        )
        for row in rows
    ]


def mask_of(item: Item, shape: tuple[int, int], max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_] | None:
    """The annotation of an item as bool (H, W) on its native grid, or None; InputError where it does not fit.

    None also for an anomalous image whose mask marks nothing: which of its pixels are anomalous is not known.
    """
    if not item.extra.mask:
        return None
    mask = read_mask(item.extra.mask, shape, max_pixels=max_pixels)
    return mask if mask.any() or item.extra.label != 1 else None


def pictures_of(job: ScoreJob, item: Item, row: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """What the report shows of an image, read when it is needed: input, reconstruction, map, mask on one grid."""

    def read() -> dict[str, Any]:
        from PIL import Image

        shown, mask = job.show(item)
        height, width = shown.shape[:2]
        with Image.open(job.outputs.folder / row["reconstruction"]) as picture:
            reconstruction = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        found: dict[str, Any] = {"input": shown, "reconstruction": reconstruction}
        if row.get("map"):
            found["map"] = job.shown_map(row, (height, width))
        if mask is not None:
            found["mask"] = resized_mask(mask, (height, width))
        return found

    return read


def run_facts(job: ScoreJob, summary: Summary, seconds_per_image: float | None) -> dict[str, Any]:
    """The run in numbers, for the report's summary."""
    detector, calibration = job.detector, job.detector.calibration
    facts: dict[str, Any] = {
        "nfe": job.nfe,
        "images_per_second": summary.images_per_second or None,
        "seconds_per_image": seconds_per_image,
        **describe(detector.denoiser.device, detector.denoiser.precision),
        "device_busy": f"{summary.device_busy_share:.0%}",
    }
    if summary.beside_share is not None:
        facts["processor_time_beside_computing"] = f"{summary.beside_share:.0%}"
    if calibration is not None and calibration.threshold is not None:
        facts |= {"false_alarm_rate": calibration.rate, "unit": calibration.unit}
    return facts


def short_float(value: Tensor | float) -> float:
    """A float32 as the float of its shortest text: the same number to float32, and readable in a table."""
    return float(str(np.float32(float(value))))


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes uint8 (H, W) or (H, W, 3) as a PNG, atomically."""
    atomic_write(path, png_bytes(pixels))


def resized_mask(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask on another grid, by the nearest pixel."""
    from PIL import Image

    if mask.shape == shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))

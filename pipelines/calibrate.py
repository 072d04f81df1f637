"""anodiff calibrate: fit a preset on normal images and write a new model file; also for imported weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anodiff.errors import DataError
from anodiff.pipelines.common import (
    Device,
    Layout,
    Model,
    ModelOutput,
    Precision,
    Preset,
    Seed,
    Set,
    drawn,
    new_file,
    open_model,
    say,
)

if TYPE_CHECKING:
    from anodiff.anomaly import AnomalyDetector, Calibration
    from anodiff.config import CalibrationConfig
    from anodiff.data.table import SampleTable
    from anodiff.model import DiffusionModel
    from anodiff.training.images import ImageSet

#: keys of the recipe that a calibration may set; the others are what the model was trained with
OPEN_KEYS = ("engine", "preset", "presets", "polarity", "calibration", "preprocess.max_pixels")


def main(
    model: Model,
    normals: Annotated[Path, typer.Argument(help="Normal images: a folder, a known layout, or a CSV manifest.")],
    output: ModelOutput,
    preset: Preset = None,
    rate: Annotated[float | None, typer.Option(help="False-alarm rate of the threshold (calibration.rate).")] = None,
    layout: Layout = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Fit a preset on normal images only: how large normal error is, the threshold, p-values, pixel thresholds.

    Two parts with no patient or part in common are used: one for the size of normal error, the other for the threshold.
    Where the data has splits, train is the first and val the second, and test is not looked at.

    \b
    Examples:
      anodiff calibrate model.safetensors normals/ --preset one-step --output model2.safetensors
      anodiff calibrate imported.safetensors brain_lgg --preset default --rate 0.01 --output calibrated.safetensors
    """
    overrides = [*(set_ or []), *([] if rate is None else [f"calibration.rate={rate}"])]
    run(
        model, normals, output,
        preset=preset, layout=layout, device=device, precision=precision, seed=seed, overrides=overrides,
    )  # fmt: skip


def run(
    model_path: Path,
    normals: Path,
    output: Path,
    *,
    preset: str | None = None,
    layout: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Calibrate a preset and write the model with it; returns the path of the new file."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.data.layouts import load_table
    from anodiff.training.images import load_images

    new_file(output)
    model = open_model(model_path, overrides, OPEN_KEYS)
    detector = AnomalyDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    config, limits = model.config, model.config.calibration

    def read(part: SampleTable, count: int) -> ImageSet:
        chosen = drawn(part, count, seed)
        return load_images(chosen, model.preprocessor, config.preprocess.max_pixels, config.engine.workers, quiet)

    fitting, threshold = normal_parts(load_table(normals, layout))
    calibration = fit(
        detector,
        read(threshold, limits.threshold_images),
        None if fitting is None else read(fitting, limits.standardise_images),
        limits,
        quiet=quiet,
    )
    store_calibration(model, detector.name, calibration)
    model.save(output)
    for note in detector.notes:
        say(f"note: {note}", quiet)
    if calibration.threshold is not None:
        say(
            f"{detector.name}: score threshold {calibration.threshold:.4g} for a false-alarm rate of "
            f"{calibration.rate:g} per {calibration.unit}, from {len(calibration.scores)} normal {calibration.unit}s",
            quiet,
        )
    say(f"wrote {output}, calibrated for {', '.join(map(repr, model.calibrations))}", quiet)
    return output


def normal_parts(samples: SampleTable) -> tuple[SampleTable | None, SampleTable]:
    """(normals for the standardisation, or None to split the others; normals for the threshold); never test images."""
    from anodiff.data.table import select

    splits = set(samples.table["split"])
    if {"train", "val"} <= splits:
        return select(samples, "train", normal_only=True), select(samples, "val", normal_only=True)
    only = next((split for split in ("val", "train", "") if split in splits), None)
    if only is None:
        found = ", ".join(sorted(splits))
        raise DataError(f"{samples.root}: expected normal images of split train or val, or of none, found {found}")
    return None, select(samples, only, normal_only=True)


def fit(
    detector: AnomalyDetector,
    normals: ImageSet,
    standardise_on: ImageSet | None,
    config: CalibrationConfig,
    *,
    quiet: bool = False,
) -> Calibration:
    """Fits the detector on at most as many images as the recipe says, with a progress bar."""
    from anodiff.engine.progress import Progress

    threshold = normals.sample(config.threshold_images, detector.seed)
    fitting = None if standardise_on is None else standardise_on.sample(config.standardise_images, detector.seed)
    total = len(threshold) + (0 if fitting is None or detector.settings.standardise == "none" else len(fitting))
    with Progress(total, "images", f"calibrating {detector.name}", quiet=quiet) as progress:
        detector.fit(
            threshold.images,
            threshold.groups,
            threshold.foreground,
            config.rate,
            config.unit,
            standardise_on=None if fitting is None else fitting.images,
            standardise_groups=None if fitting is None else fitting.groups,
            standardise_foreground=None if fitting is None else fitting.foreground,
            progress=progress.update,
        )
    assert detector.calibration is not None
    return detector.calibration


def store_calibration(model: DiffusionModel, name: str, calibration: Calibration) -> None:
    """Keeps a calibration in the model (in memory) under its preset's name."""
    model.calibrations = {**model.calibrations, name: calibration}
